"""A slice of K2-Thinking, one dense and one MoE layer of its true dimensions with all 384 experts: where an MoE layer's time goes.

Expert shards are plain processes, each with a stretch of the experts. This process is the router of an attention worker: the
checkpoint's own gate, dispatch, lanes and combine; the shared expert, which a worker computes while it waits, is left out, and so
are attention and head. Lanes over shared memory (``local``), TCP and gRPC take turns, call by call, each with rows of its own, so
that no experts' weights lie in a cache. A call's parts: ``gate``; ``dispatch`` (plan, packing, and sending as far as this thread
does it); ``wait``, until the last result is here; ``combine``. ``slowest_shard`` is the largest of the shards' compute seconds of
that call, from their own reports before and after it, ``all_shards`` their sum. ``overhead_percent`` is the layer beyond the
slowest shard ÷ the slowest shard. Where threads of shards outnumber the processors, shards wait for each other and that share is
theirs, not the design's: ``overhead_beyond_floor_percent`` takes the larger of the slowest and of all ÷ processors instead.

``memory``: a shard's proportional set size beyond that of a shard with one expert, after every expert was used, ÷ the checkpoint's
bytes of the experts it holds more. ``load``: bench_loading.py's rounds. Prints a CSV line per figure.
"""

import argparse
import itertools
import os
import signal
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import bench_loading
import psutil
import torch
from role_process import RoleProcess, Roles, roles
from router_lanes import KINDS, Lanes
from shard_reports import ShardReports

from expertfleet.checkpoint.make_tiny import make_tiny
from expertfleet.checkpoint.tensors import Checkpoint
from expertfleet.kernels.batch_invariant_linear import BatchInvariantScores
from expertfleet.kernels.row_rule import RuleCache
from expertfleet.kernels.top_k_gate import TopKGate
from expertfleet.membership.epoch import ExpertSet, Member
from expertfleet.router.dispatch.gate import Gate
from expertfleet.transport.io_thread import IoThread

_COLUMNS = "figure,lanes,tokens,count,median,p10,p90"
_WARM_UP = 3
_PAUSE_S = 0.01  # after the shards' reports, so that nobody still works on them
_LOADED_WITHIN_S = 1800.0


class Slice:
    """The gate and the lanes of one MoE layer, to shards that are ready."""

    def __init__(self, checkpoint: Checkpoint, shards: Sequence[RoleProcess], io: IoThread, spin_us: int = 0) -> None:
        self._config = checkpoint.config
        self._layer = self._config.moe_layers[0]
        self._gate = read_gate(checkpoint, self._layer)
        addresses = [shard.address() for shard in shards]
        self._reports = ShardReports(io, addresses)
        told = self._reports.ready(_LOADED_WITHIN_S)
        self.pids = [report.pid for report in told]
        self.bytes_held = [report.bytes_loaded for report in told]
        members = [
            Member(report.seat, address, report.numerics, ExpertSet.from_proto(report.held))
            for report, address in zip(told, addresses, strict=True)
        ]
        self._held = [expert for member in members for expert in member.held.experts(self._layer)]
        self.lanes = [Lanes(kind, checkpoint, members, io, spin_us=spin_us) for kind in KINDS]

    def call(self, lanes: Lanes, tokens: int) -> dict[str, float]:
        """One layer's figures."""
        x = torch.randn(tokens, self._config.hidden_size).bfloat16()
        before = self._reports.compute_seconds()
        time.sleep(_PAUSE_S)
        times = [time.perf_counter()]
        topk_ids, topk_weights = self._gate(x)
        times.append(time.perf_counter())
        with closing(lanes.router.dispatch(self._layer, x, topk_ids, topk_weights)) as dispatch:
            times.append(time.perf_counter())
            lanes.wait(dispatch)
            times.append(time.perf_counter())
            dispatch.combined()
        times.append(time.perf_counter())
        shards = [now - then for now, then in zip(self._reports.compute_seconds(), before, strict=True)]
        return figures_of(times, shards)

    def use_every_expert(self) -> None:
        """Each once, over lanes of both kinds."""
        topk_ids = torch.tensor(self._held)[:, None]
        x = torch.randn(len(topk_ids), self._config.hidden_size).bfloat16()
        for lanes in self.lanes:
            with closing(lanes.router.dispatch(self._layer, x, topk_ids, torch.ones(topk_ids.shape))) as dispatch:
                lanes.wait(dispatch)

    def resident_bytes(self) -> list[int]:
        """Proportional set size of each shard."""
        return [psutil.Process(pid).memory_full_info().pss for pid in self.pids]

    def end(self) -> None:
        for lanes in self.lanes:
            lanes.end()
        self._reports.close()


def figures_of(times: list[float], shards: list[float]) -> dict[str, float]:
    """``times`` before and after each part, ``shards`` the compute seconds of each shard."""
    slowest, everything, layer = max(shards), sum(shards), times[-1] - times[0]
    floor = max(slowest, everything / len(os.sched_getaffinity(0)))
    seconds = dict(
        zip(("gate", "dispatch", "wait", "combine"), (b - a for a, b in itertools.pairwise(times)), strict=True)
    )
    seconds |= {"slowest_shard": slowest, "all_shards": everything, "layer": layer, "overhead": layer - slowest}
    shares = {"overhead_percent": layer / slowest - 1, "overhead_beyond_floor_percent": layer / floor - 1}
    return {f"{name}_us": 1e6 * value for name, value in seconds.items()} | {
        name: 100 * share for name, share in shares.items()
    }


def read_gate(checkpoint: Checkpoint, layer: int) -> Gate:
    config, name = checkpoint.config, f"model.layers.{layer}.mlp.gate"
    return Gate(
        BatchInvariantScores(checkpoint.read(f"{name}.weight"), RuleCache()),
        checkpoint.read(f"{name}.e_score_correction_bias").float(),
        TopKGate(config.top_k, config.n_group, config.topk_group, config.norm_topk_prob, config.routed_scaling_factor),
    )


def measure_layers(live: Slice, options: argparse.Namespace) -> None:
    for tokens in options.tokens:
        found: dict[tuple[str, str], list[float]] = defaultdict(list)
        for number in range(_WARM_UP + options.calls):
            for lanes in live.lanes:
                for figure, value in live.call(lanes, tokens).items():
                    if number >= _WARM_UP:
                        found[lanes.kind, figure].append(value)
        for (kind, figure), values in found.items():
            tell(figure, values, 1, kind, str(tokens))


def measure_memory(live: Slice, checkpoint: Checkpoint, started: Roles, io: IoThread, threads: int) -> None:
    """Beside a shard that holds the first expert alone."""
    flags = ("--model", checkpoint.directory, "--seat", "expert-bare", "--experts", 0, "--threads", threads)
    bare = Slice(checkpoint, [started.start("expert_workers", *flags)], io)
    for each in (live, bare):
        each.use_every_expert()
    (bare_bytes,), (bare_held,) = bare.resident_bytes(), bare.bytes_held
    resident = live.resident_bytes()
    bare.end()
    added = [held - bare_held for held in live.bytes_held]
    tell("bare_shard_bytes", [bare_bytes], 0)
    tell("shard_bytes", resident, 0)
    tell("checkpoint_bytes", live.bytes_held, 0)
    tell("memory", [(pss - bare_bytes) / more for pss, more in zip(resident, added, strict=True)], 3)


def measure_loading(options: argparse.Namespace) -> None:
    found = list(bench_loading.rounds(options.model, options.shards, options.threads, options.load_rounds))
    tell("load_s", [each.load_s for each in found], 2)
    tell("direct_s", [each.direct_s for each in found], 2)
    tell("load_from_disk", [each.load_read / each.num_bytes for each in found], 2)
    tell("load", [each.ratio for each in found], 2)


def tell(figure: str, values: Sequence[float], digits: int, lanes: str = "", tokens: str = "") -> None:
    ordered = sorted(values)
    p10, p90 = (ordered[round(share * (len(ordered) - 1))] for share in (0.1, 0.9))
    shown = (f"{value:.{digits}f}" for value in (statistics.median(ordered), p10, p90))
    print(figure, lanes, tokens, len(ordered), *shown, sep=",", flush=True)


def measure(options: argparse.Namespace, folder: Path) -> None:
    print(_COLUMNS)
    if options.load_rounds:
        measure_loading(options)
    io = IoThread("io")
    with Checkpoint.open(options.model) as checkpoint, roles(folder) as started, torch.inference_mode():
        shards = []
        for number, experts in enumerate(bench_loading.experts_of(checkpoint.config.num_experts, options.shards)):
            flags = ("--seat", f"expert-{number}", "--experts", experts, "--threads", options.threads)
            flags += ("--spin-us", options.spin_us)
            shards.append(started.start("expert_workers", "--model", options.model, *flags))
        live = Slice(checkpoint, shards, io, options.spin_us)
        measure_layers(live, options)
        measure_memory(live, checkpoint, started, io, options.threads)
        live.end()
    io.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a checkpoint; the slice, 10 GB, is made and removed if not given")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1, help="of each shard")
    parser.add_argument("--spin-us", type=int, default=0, help="how long both ends look for work before they sleep")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--calls", type=int, default=100, help="of each kind of lanes and number of tokens")
    parser.add_argument("--load-rounds", type=int, default=3, help="0: loading is not measured")
    options = parser.parse_args()
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, lambda *caught: sys.exit(1))  # the shards end as well
    with tempfile.TemporaryDirectory(prefix="bench") as folder:
        if options.model is None:
            options.model = Path(folder) / "k2"
            make_tiny(options.model, like="kimi-k2-thinking", layers=2, vocab=512)
        measure(options, Path(folder))


if __name__ == "__main__":
    main()
