"""What Kimi-K2-Thinking would decode on a fleet of other machines: an EXTRAPOLATION from what was measured here, no measurement.

Every number of your machines is a flag; what was measured is read from ``results/``. One step decodes one token of each of T
sequences. With B bytes, F multiply-adds counted as 2, L MoE layers and N CPU nodes that hold experts:

  attention = max(B(attention and caches) ÷ (bandwidth × share_bf16), F ÷ (processors × flops_bf16))
  router    = L × (cpu + cpu_token × (T - 1) + cpu_shard × (shards - 1)) ÷ router speed
  experts   = L × max(busiest × B(expert) ÷ (bandwidth × share_int4), rows × F(expert) ÷ (processors × flops_int4))
  compute   = T ÷ (attention + router + experts), nothing overlapping
  wire      = T ÷ (L × (round trip + 8 × T × top_k × hidden × 2 ÷ bit/s)): each route's result comes back to the one attention worker
  tokens/s  = min(compute, wire)
  $/million = 10^6 × $/s ÷ tokens/s

``busiest``: experts that the busiest node is asked for, and ``rows``: the most routes, in the mean of draws of T × top_k of all experts,
each as likely as the others. A GPU holds what fits into it and its time counts as nothing, as none was measured. The router's
figures are the CPU time of two shared processors, over TCP; --router-speed is how many times as fast yours runs one thread.
"""

import argparse
import csv
import math
import random
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expertfleet.checkpoint.model_config import ModelConfig
from expertfleet.checkpoint.tiny_config import KIMI_K2_THINKING, config_document

_RESULTS = Path(__file__).parent / "results"
_EXPERTS = _RESULTS / "experts-intel-r-xeon-r-processor-x2-amx-int8.csv"
_LANES = _RESULTS / "lanes-xeon-2core.csv"
_GIB = 1 << 30
_DRAWS = 100
_COLUMNS = ("CPU nodes", "sequences", "attention ms", "router ms", "experts ms", "wire ms", "tokens/s", "$/million")


@dataclass(frozen=True)
class Machine:
    bandwidth: float  # bytes/s
    processors: int
    usd_per_hour: float


@dataclass(frozen=True)
class Fleet:
    attention: Machine
    expert: Machine
    num_experts_on_gpu: int  # of each layer
    gpu_usd_per_hour: float
    bits_per_s: float
    round_trip_s: float
    context: int
    router_speed: float


@dataclass(frozen=True)
class Measured:
    share_int4: float  # of the read bandwidth, one token
    share_bf16: float
    flops_int4: float  # of one processor
    flops_bf16: float
    router_s: float  # per layer: one token, one shard
    router_token_s: float  # each further token
    router_shard_s: float  # each further shard


@dataclass(frozen=True)
class Step:
    num_tokens: int
    attention_s: float
    router_s: float
    experts_s: float
    wire_s: float
    usd_per_hour: float

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / max(self.attention_s + self.router_s + self.experts_s, self.wire_s)

    @property
    def usd_per_million(self) -> float:
        return 1e6 * self.usd_per_hour / 3600 / self.tokens_per_s


def read_measured() -> Measured:
    experts, lanes = _rows(_EXPERTS), _rows(_LANES)
    ours = [row for row in experts if row["kernel"] == "cpu-native" and row["experts_held"] == row["experts_all"]]
    bf16 = [row for row in experts if row["kernel"] == "bf16" and row["experts_held"] == row["experts_all"]]
    router = {
        (int(row["tokens"]), int(row["shards"])): float(row["router_cpu_us"]) / 1e6
        for row in lanes
        if row["kind"] == "tcp"
    }
    many_tokens, many_shards = max(tokens for tokens, _ in router), max(shards for _, shards in router)
    first = router[1, 1]
    widening = 16 / (4 + 16 / 32)  # NOTE: rates in the table count the checkpoint's bytes: 4 bits and a 32nd of a scale
    return Measured(
        share_int4=_share(ours),
        share_bf16=_share(bf16) * widening,
        flops_int4=_flops(ours),
        flops_bf16=_flops(bf16),
        router_s=first,
        router_token_s=(router[many_tokens, 1] - first) / (many_tokens - 1),
        router_shard_s=(router[1, many_shards] - first) / (many_shards - 1),
    )


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open() as lines:
        return list(csv.DictReader(line for line in lines if not line.startswith("#")))


def _share(rows: Sequence[dict[str, str]]) -> float:
    (row,) = (row for row in rows if row["tokens"] == "1")
    return float(row["gb_per_s"]) / float(row["limit_gb_per_s"])


def _flops(rows: Sequence[dict[str, str]]) -> float:
    """The best that any number of tokens reached."""
    return max(1e12 * float(row["tflops"]) / int(row["threads"]) for row in rows)


def attention_params(config: ModelConfig) -> int:
    """Read for every token: all but the routed experts and the embedding."""
    hidden, latent, heads = config.hidden_size, config.kv_lora_rank, config.num_heads
    queries = config.q_lora_rank or 0
    head = config.qk_nope_head_dim + config.qk_rope_head_dim
    attention = hidden * queries + queries * heads * head
    attention += hidden * (latent + config.qk_rope_head_dim)
    attention += latent * heads * (config.qk_nope_head_dim + config.v_head_dim) + heads * config.v_head_dim * hidden
    shared = config.num_shared_experts * 3 * hidden * config.moe_intermediate_size + hidden * config.num_experts
    dense = config.num_dense_layers * 3 * hidden * config.intermediate_size
    return config.num_layers * attention + len(config.moe_layers) * shared + dense + hidden * config.vocab_size


def attention_s(config: ModelConfig, fleet: Fleet, measured: Measured, num_tokens: int) -> float:
    params, positions = attention_params(config), num_tokens * fleet.context * config.num_layers
    values = config.kv_lora_rank + config.qk_rope_head_dim
    read = 2 * params + 2 * values * positions
    computed = 2 * params * num_tokens + 2 * (values + config.kv_lora_rank) * config.num_heads * positions
    machine = fleet.attention
    return max(read / (machine.bandwidth * measured.share_bf16), computed / (machine.processors * measured.flops_bf16))


def busiest(config: ModelConfig, num_nodes: int, num_on_gpu: int, num_tokens: int) -> tuple[float, float]:
    """(experts that the busiest CPU node is asked for, the most routes that one gets): means over draws that are always the same."""
    draws = random.Random(0)
    experts, routes = [], []
    for _ in range(_DRAWS):
        asked = [each for _ in range(num_tokens) for each in draws.sample(range(config.num_experts), config.top_k)]
        on_cpus = [each for each in asked if each >= num_on_gpu]
        experts.append(_most([each % num_nodes for each in set(on_cpus)]))
        routes.append(_most([each % num_nodes for each in on_cpus]))
    return statistics.mean(experts), statistics.mean(routes)


def _most(nodes: Sequence[int]) -> int:
    return max((nodes.count(node) for node in set(nodes)), default=0)


def experts_s(config: ModelConfig, fleet: Fleet, measured: Measured, num_nodes: int, num_tokens: int) -> float:
    experts, routes = busiest(config, num_nodes, fleet.num_experts_on_gpu, num_tokens)
    computed = routes * 2 * 3 * config.hidden_size * config.moe_intermediate_size
    machine = fleet.expert
    return len(config.moe_layers) * max(
        experts * config.expert_bytes / (machine.bandwidth * measured.share_int4),
        computed / (machine.processors * measured.flops_int4),
    )


def router_s(config: ModelConfig, fleet: Fleet, measured: Measured, num_nodes: int, num_tokens: int) -> float:
    """One token cannot ask more shards than it has routes."""
    shards = min(num_nodes + (fleet.num_experts_on_gpu > 0), num_tokens * config.top_k)
    layer = measured.router_s + measured.router_token_s * (num_tokens - 1) + measured.router_shard_s * (shards - 1)
    return len(config.moe_layers) * layer / fleet.router_speed


def wire_s(config: ModelConfig, fleet: Fleet, num_tokens: int) -> float:
    results = num_tokens * config.top_k * config.hidden_size * 2
    return len(config.moe_layers) * (fleet.round_trip_s + 8 * results / fleet.bits_per_s)


def step(config: ModelConfig, fleet: Fleet, measured: Measured, num_nodes: int, num_tokens: int) -> Step:
    has_gpu = fleet.num_experts_on_gpu > 0
    return Step(
        num_tokens,
        attention_s(config, fleet, measured, num_tokens),
        router_s(config, fleet, measured, num_nodes, num_tokens),
        experts_s(config, fleet, measured, num_nodes, num_tokens),
        wire_s(config, fleet, num_tokens),
        fleet.attention.usd_per_hour + num_nodes * fleet.expert.usd_per_hour + has_gpu * fleet.gpu_usd_per_hour,
    )


def experts_held(config: ModelConfig, gib: float) -> int:
    """Of each layer."""
    return min(config.num_experts, math.floor(gib * _GIB / config.expert_bytes / len(config.moe_layers)))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[4, 8, 16], help="CPU nodes that hold experts")
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 16, 64], help="decoded at once")
    parser.add_argument("--context", type=int, default=4096, help="positions of each sequence")
    for role, bandwidth, processors, usd in (("attention", 614.0, 48, 6.0), ("expert", 307.0, 32, 2.0)):
        parser.add_argument(
            f"--{role}-gb-s", type=float, default=bandwidth, help="read bandwidth (default: %(default)s)"
        )
        parser.add_argument(f"--{role}-processors", type=int, default=processors, help="(default: %(default)s)")
        parser.add_argument(f"--{role}-usd-h", type=float, default=usd, help="assumed price (default: %(default)s)")
    parser.add_argument("--expert-gib", type=float, default=128.0, help="memory for experts of a CPU node")
    parser.add_argument("--gpu-gib", type=float, default=70.0, help="memory for experts of the GPU; 0: there is none")
    parser.add_argument("--gpu-usd-h", type=float, default=3.0, help="assumed price (default: %(default)s)")
    parser.add_argument("--gbit", type=float, default=25.0, help="of the attention worker's link")
    parser.add_argument("--round-trip-ms", type=float, default=0.1)
    parser.add_argument("--router-speed", type=float, default=1.0, help="times as fast as the measured processor")
    options: Any = parser.parse_args(argv)
    config = ModelConfig.from_dict(config_document(KIMI_K2_THINKING))
    fleet = Fleet(
        attention=Machine(1e9 * options.attention_gb_s, options.attention_processors, options.attention_usd_h),
        expert=Machine(1e9 * options.expert_gb_s, options.expert_processors, options.expert_usd_h),
        num_experts_on_gpu=experts_held(config, options.gpu_gib),
        gpu_usd_per_hour=options.gpu_usd_h,
        bits_per_s=1e9 * options.gbit,
        round_trip_s=options.round_trip_ms / 1e3,
        context=options.context,
        router_speed=options.router_speed,
    )
    print("extrapolated, not measured")
    print(*_COLUMNS, sep=" | ")
    for num_nodes in options.nodes:
        held = fleet.num_experts_on_gpu + num_nodes * experts_held(config, options.expert_gib)
        if held < config.num_experts:
            sys.exit(f"size_fleet: --nodes {num_nodes}: hold {held} of {config.num_experts} experts of each layer")
        for num_tokens in options.sequences:
            _print(num_nodes, step(config, fleet, read_measured(), num_nodes, num_tokens))


def _print(num_nodes: int, one: Step) -> None:
    times = (one.attention_s, one.router_s, one.experts_s, one.wire_s)
    told = [f"{1e3 * seconds:.0f}" for seconds in times]
    print(num_nodes, one.num_tokens, *told, f"{one.tokens_per_s:.1f}", f"{one.usd_per_million:.0f}", sep=" | ")


if __name__ == "__main__":
    main()
