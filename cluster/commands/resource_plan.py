"""What a fleet will need before any of it starts: experts, bytes and threads per worker, and whether memory suffices.

Knows nothing of processes; the machine's cores and free memory are arguments.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...checkpoint.files import CheckpointFiles
from ...expert_workers.memory import read_words
from ...expert_workers.numa import Nodes
from ...router.placement.placement import Shard, place
from ...settings.ranges import format_ranges
from ..controller.budget import GIB, WORKER_BYTES, Budget, Size
from ..controller.seats import FleetShape
from ..errors import ClusterError
from .config import FleetConfig

_SPIN_US = 200
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class WorkerResources:
    """One worker's part of the plan."""

    seat: str
    threads: int
    num_experts: int
    weight_bytes: int
    memory_bytes: int
    cpus: str = ""  # processors to keep to; all if empty


@dataclass(frozen=True)
class ResourcePlan:
    shape: FleetShape
    shares: tuple[WorkerResources, ...]
    size: Size
    budget: Budget
    spin_us: int = 0  # how long each worker looks for work before it sleeps

    @property
    def memory_bytes(self) -> int:
        return self.budget.needed_bytes(self.size)

    def memory_for_experts(self, available_bytes: int) -> float:
        """GiB of experts that each shard may hold when all of a machine's memory is shared out, lost shards' experts included."""
        experts = [share for share in self.shares if share.num_experts]
        spare = (available_bytes - self.memory_bytes) / max(1, len(experts))
        largest = max(share.weight_bytes for share in experts)
        return round((largest + max(0.0, spare)) / GIB, 3) + 0.001

    def describe(self) -> dict[str, Any]:
        """For ``--dry-run``."""
        return {
            "fingerprint": self.shape.fingerprint,
            "memory_gib": round(self.memory_bytes / GIB, 3),
            "spin_us": self.spin_us,
            "workers": [
                {
                    "seat": share.seat,
                    "threads": share.threads,
                    "cpus": share.cpus,
                    "experts": share.num_experts,
                    "weight_bytes": share.weight_bytes,
                    "memory_gib": round(share.memory_bytes / GIB, 3),
                }
                for share in self.shares
            ],
        }


def check_memory(size: Size, budget: Budget, available_bytes: int) -> None:
    """Raises ClusterError with the numbers that would fit."""
    needed = budget.needed_bytes(size)
    if needed <= available_bytes:
        return
    lower = [f"--{name.replace('_', '-')} to {most:g}" for name, most in budget.smaller(size, available_bytes).items()]
    if not lower and budget.needed_bytes(Size(1, math.ceil(size.replicas), size.replicas)) <= available_bytes:
        lower = ["--expert-shards and --attention-workers"]
    caches = size.attention_workers * (budget.attention_bytes - WORKER_BYTES)
    if needed - caches <= available_bytes:
        lower += ["--cache-gib", "--max-model-len"]
    remedy = f"lower {' or '.join(lower)}, or spread" if lower else "spread"
    largest = max(
        ("an attention worker", budget.attention_bytes),
        ("an expert shard", budget.shard_bytes(size)),
        key=lambda each: each[1],
    )
    raise ClusterError(
        f"too little memory: the plan needs {needed / GIB:.1f} GiB ({largest[0]} alone {largest[1] / GIB:.1f} GiB), "
        f"{available_bytes / GIB:.1f} GiB are available; {remedy} the shards over machines (docs/machines.md)"
    )


def fitting_plan(
    config: FleetConfig, checkpoint: CheckpointFiles, cores: int, nodes: Nodes, available_bytes: int
) -> ResourcePlan:
    """One that the machine has the memory for, which is known before any expert is laid out."""
    budget = make_budget(config, checkpoint)
    check_memory(config.size, budget, available_bytes)
    return make_plan(config, checkpoint, cores, nodes)


def make_budget(config: FleetConfig, checkpoint: CheckpointFiles) -> Budget:
    """Raises ClusterError for settings that no machine could follow."""
    model = checkpoint.config
    if config.max_model_len is not None and config.max_model_len > model.max_position_embeddings:
        limit = model.max_position_embeddings
        raise ClusterError(f"max_model_len: {config.max_model_len} is more than the checkpoint's {limit} positions")
    _, attention_bytes = _attention_share(config, checkpoint)
    num_experts = len(model.moe_layers) * model.num_experts
    return Budget(attention_bytes, num_experts, model.expert_bytes, config.memory_gib, config.placing)


def _check(budget: Budget, size: Size) -> None:
    if fault := budget.why_never(size):
        raise ClusterError(fault)


def make_plan(config: FleetConfig, checkpoint: CheckpointFiles, cores: int, nodes: Nodes) -> ResourcePlan:
    """``cores`` that may be used at once, on the processors of NUMA ``nodes``."""
    model = checkpoint.config
    size, budget = config.size, make_budget(config, checkpoint)
    _check(budget, size)
    shape = fleet_shape(checkpoint, config.dtype)
    attention_threads, shard_threads = threads_by_role(cores, config.attention_workers, config.expert_shards)
    attention = _attention_share(config, checkpoint)
    shares = [
        WorkerResources(seat, config.threads or attention_threads, 0, *attention) for seat in config.attention_seats
    ]
    bound = deal_processors(config, cores, nodes)
    num_held = _shares_of_experts(config.expert_seats, shape, budget.copies(size) / budget.num_experts)
    for seat, num_experts, cpus in zip(config.expert_seats, num_held, bound, strict=True):
        weights = num_experts * model.expert_bytes
        memory = weights + WORKER_BYTES
        threads = len(cpus) or config.threads or shard_threads
        shares.append(WorkerResources(seat, threads, num_experts, weights, memory, format_ranges(cpus)))
    used = [share.threads for share in shares]
    found = spin_within(cores, used[: config.attention_workers], used[config.attention_workers :])
    spin_us = found if config.spin_us is None else config.spin_us
    return ResourcePlan(shape, tuple(shares), size, budget, spin_us)


def fleet_shape(checkpoint: CheckpointFiles, dtype: str) -> FleetShape:
    model = checkpoint.config
    return FleetShape(
        num_layers=model.num_layers,
        num_experts=model.num_experts,
        num_dense_layers=model.num_dense_layers,
        fingerprint=checkpoint.fingerprint,
        dtype=dtype,
        expert_bytes=model.expert_bytes,
    )


def _shares_of_experts(seats: Sequence[str], shape: FleetShape, replicas: float) -> list[int]:
    """How many (layer, expert) pairs each shard starts with."""
    wanted = shape.all_experts()
    shards = [Shard(seat, capacity=int(wanted.sum())) for seat in seats]
    return [int(held.sum()) for held in place(shards, wanted, replicas).held]


def deal_processors(config: FleetConfig, cores: int, nodes: Nodes) -> list[tuple[int, ...]]:
    """Each shard's own processors, all of one NUMA node; empty where they share all. Shards take the nodes in turn.

    Without --threads a node's processors are divided among its shards. Raises ClusterError if they are too few; unasked,
    nothing is bound then, nor where a quota leaves fewer ``cores`` than there are processors.
    """
    num_shards, homes = config.expert_shards, list(nodes)
    worth_it = len(homes) > 1 and cores >= sum(map(len, nodes.values()))
    if not (worth_it if config.pin is None else config.pin):
        return [()] * num_shards
    bound: list[tuple[int, ...]] = []
    for shard in range(num_shards):
        home, turn = homes[shard % len(homes)], shard // len(homes)
        neighbours = len(range(shard % len(homes), num_shards, len(homes)))
        threads = config.threads or len(nodes[home]) // neighbours
        if not 0 < threads * neighbours <= len(nodes[home]):
            if config.pin is None:
                return [()] * num_shards
            raise ClusterError(
                f"pin: {neighbours} shards of {max(1, threads)} threads do not fit on the {len(nodes[home])} processors "
                f"of NUMA node {home}; lower --threads or --expert-shards, or give --no-pin"
            )
        bound.append(nodes[home][turn * threads : (turn + 1) * threads])
    return bound


def threads_by_role(cores: int, attention_workers: int, expert_shards: int) -> tuple[int, int]:
    """The threads of each attention worker and of each expert shard.

    The two kinds take turns in every layer, so each shares out all cores. Where there are two cores and more for each worker,
    one is left to every worker that waits, which then looks for its next work there instead of sleeping.
    """
    is_roomy = cores >= 2 * (attention_workers + expert_shards)
    for_attention = cores - (expert_shards if is_roomy else 0)
    for_shards = cores - (attention_workers if is_roomy else 0)
    return max(1, for_attention // attention_workers), max(1, for_shards // expert_shards)


def spin_within(cores: int, attention_threads: Sequence[int], shard_threads: Sequence[int]) -> int:
    """How long a worker that waits looks for its next work: not at all where it would take a core from those that compute."""
    busiest = max(sum(attention_threads) + len(shard_threads), sum(shard_threads) + len(attention_threads))
    return _SPIN_US if min(*attention_threads, *shard_threads) > 1 and busiest <= cores else 0


def _attention_share(config: FleetConfig, checkpoint: CheckpointFiles) -> tuple[int, int]:
    """(weight bytes, memory) of one attention worker: everything but the routed experts, and the latent cache."""
    model = checkpoint.config
    num_routed = len(model.moe_layers) * model.num_experts
    total = sum(info.end - info.start for info in checkpoint.tensors.values())
    weights = max(0, total - num_routed * model.expert_bytes)
    width = 2 if config.dtype == "float32" else 1
    positions = config.max_model_len or model.max_position_embeddings
    sequence = positions * model.num_layers * model.latent_width * 2 * width
    if config.cache_gib is not None and config.cache_gib * GIB < sequence:
        raise ClusterError(
            f"cache_gib: {config.cache_gib:g} GiB cannot hold one sequence of {positions} positions; "
            f"give --cache-gib {math.ceil(sequence / GIB * 1000) / 1000:g} or a smaller --max-model-len"
        )
    cache = int(config.cache_gib * GIB) if config.cache_gib is not None else max(GIB, sequence)
    return weights, weights * width + cache + WORKER_BYTES


def available_cores() -> int:
    """Cores this process may use, a container's quota included."""
    cores = len(os.sched_getaffinity(0))
    quota = read_words(_CGROUP / "cpu.max")
    if len(quota) == 2 and quota[0].isdecimal():
        cores = min(cores, max(1, int(quota[0]) // int(quota[1])))
    return cores
