import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from expertfleet.checkpoint.files import CheckpointFiles
from expertfleet.cluster.commands.config import FleetConfig
from expertfleet.cluster.commands.resource_plan import (
    GIB,
    WORKER_BYTES,
    available_cores,
    check_memory,
    fitting_plan,
    make_plan,
    spin_within,
    threads_by_role,
)
from expertfleet.cluster.errors import ClusterError
from expertfleet.expert_workers.config import ExpertConfig
from expertfleet.expert_workers.memory import available_memory

NODES = {0: tuple(range(8))}


@pytest.fixture
def checkpoint(tiny: Path) -> Iterator[CheckpointFiles]:
    with CheckpointFiles.open(tiny) as opened:
        yield opened


def config(tiny: Path, **changes: object) -> FleetConfig:
    return dataclasses.replace(FleetConfig(model=tiny, max_model_len=512, cache_gib=0.5), **changes)


def test_experts_and_bytes_are_shared_out(tiny: Path, checkpoint: CheckpointFiles) -> None:
    plan = make_plan(config(tiny, expert_shards=5, replicas=2), checkpoint, 2, NODES)
    model = checkpoint.config
    shards = [share for share in plan.shares if share.seat.startswith("expert")]
    assert len(shards) == 5
    assert sum(share.num_experts for share in shards) == 2 * len(model.moe_layers) * model.num_experts
    for share in shards:
        assert share.weight_bytes == share.num_experts * model.expert_bytes
        assert share.memory_bytes == share.weight_bytes + WORKER_BYTES
    assert plan.shape.fingerprint == checkpoint.fingerprint


def test_attention_counts_everything_but_the_experts_and_its_cache(tiny: Path, checkpoint: CheckpointFiles) -> None:
    (half,) = (s for s in make_plan(config(tiny), checkpoint, 2, NODES).shares if s.seat == "attention-0")
    (full,) = (
        s for s in make_plan(config(tiny, dtype="float32"), checkpoint, 2, NODES).shares if s.seat == "attention-0"
    )
    on_disk = sum(info.end - info.start for info in checkpoint.tensors.values())
    experts = len(checkpoint.config.moe_layers) * checkpoint.config.num_experts * checkpoint.config.expert_bytes
    assert half.weight_bytes == on_disk - experts
    assert half.memory_bytes == half.weight_bytes + GIB // 2 + WORKER_BYTES
    assert full.memory_bytes - half.memory_bytes == half.weight_bytes


def test_too_little_memory_is_one_line_with_the_remedy(tiny: Path, checkpoint: CheckpointFiles) -> None:
    plan = make_plan(config(tiny), checkpoint, 2, NODES)
    check_memory(plan.size, plan.budget, plan.memory_bytes)
    with pytest.raises(
        ClusterError, match=r"too little memory: the plan needs 2\.\d GiB .* 1\.0 GiB are available; spread"
    ):
        check_memory(plan.size, plan.budget, GIB)


def test_a_cache_too_small_for_one_sequence_names_what_would_do(tiny: Path, checkpoint: CheckpointFiles) -> None:
    with pytest.raises(
        ClusterError, match=r"cache_gib: 0\.001 GiB cannot hold one sequence of 8192 positions; give --cache"
    ):
        make_plan(config(tiny, max_model_len=8192, cache_gib=0.001), checkpoint, 2, NODES)


def test_more_positions_than_the_checkpoint_has_are_refused(tiny: Path, checkpoint: CheckpointFiles) -> None:
    limit = checkpoint.config.max_position_embeddings
    with pytest.raises(ClusterError, match=f"max_model_len: {limit + 1} is more than the checkpoint's {limit}"):
        make_plan(config(tiny, max_model_len=limit + 1), checkpoint, 2, NODES)


@pytest.mark.parametrize(
    ("cores", "attention_workers", "expert_shards", "threads"),
    [
        *((2, 1, 1, (2, 2)), (2, 1, 2, (2, 1)), (2, 1, 3, (2, 1)), (2, 2, 2, (1, 1)), (1, 1, 2, (1, 1))),
        *((4, 1, 1, (3, 3)), (5, 1, 2, (5, 2)), (6, 1, 2, (4, 2)), (64, 1, 2, (62, 31)), (64, 2, 4, (30, 15))),
    ],
)
def test_each_kind_of_worker_shares_out_all_cores_but_those_on_which_the_other_waits(
    cores: int, attention_workers: int, expert_shards: int, threads: tuple[int, int]
) -> None:
    assert threads_by_role(cores, attention_workers, expert_shards) == threads


def test_a_plan_gives_each_role_its_threads(tiny: Path, checkpoint: CheckpointFiles) -> None:
    plan = make_plan(config(tiny, attention_workers=2, expert_shards=4), checkpoint, 64, NODES)
    assert [share.threads for share in plan.shares] == [30, 30, 15, 15, 15, 15]
    assert plan.spin_us > 0


@pytest.mark.parametrize(
    ("cores", "threads", "spins"),
    [
        *((8, ([7], [7]), True), (8, ([6], [3, 3]), True), (8, ([8], [8]), False), (8, ([7], [4, 4]), False)),
        *((2, ([2], [1, 1]), False), (64, ([1], [1]), False), (64, ([62], [31, 1]), False)),
    ],
)
def test_workers_that_wait_spin_where_those_that_compute_leave_them_processors(
    cores: int, threads: tuple[list[int], list[int]], spins: bool
) -> None:
    assert (spin_within(cores, *threads) > 0) == spins


def test_an_explicit_spin_wins(tiny: Path, checkpoint: CheckpointFiles) -> None:
    assert make_plan(config(tiny, spin_us=50), checkpoint, 2, NODES).spin_us == 50
    assert make_plan(config(tiny, spin_us=0), checkpoint, 64, NODES).spin_us == 0


def test_explicit_threads_win(tiny: Path, checkpoint: CheckpointFiles) -> None:
    assert {share.threads for share in make_plan(config(tiny, threads=3), checkpoint, 64, NODES).shares} == {3}


def test_the_machine_has_cores_and_memory() -> None:
    assert available_cores() >= 1
    assert available_memory() > 0


def test_a_machines_memory_is_shared_out_among_the_shards(tiny: Path, checkpoint: CheckpointFiles) -> None:
    plan = make_plan(config(tiny, expert_shards=2), checkpoint, 2, NODES)
    largest = max(share.weight_bytes for share in plan.shares if share.num_experts) / GIB
    assert plan.memory_for_experts(plan.memory_bytes) == pytest.approx(largest, abs=0.002)
    assert plan.memory_for_experts(plan.memory_bytes + 200 * GIB) == pytest.approx(largest + 100, rel=0.001)


@pytest.mark.parametrize(
    ("changes", "nodes", "bound"),
    [
        ({"expert_shards": 2}, {0: range(8)}, ["", ""]),
        ({"expert_shards": 2, "pin": True}, {0: range(8)}, ["0-3", "4-7"]),
        ({"expert_shards": 3}, {0: range(8), 1: range(8, 16)}, ["0-3", "8-15", "4-7"]),
        ({"expert_shards": 3, "threads": 2}, {0: range(8), 1: range(8, 16)}, ["0-1", "8-9", "2-3"]),
        ({"expert_shards": 3, "pin": False}, {0: range(8), 1: range(8, 16)}, ["", "", ""]),
        ({"expert_shards": 2, "threads": 9}, {0: range(8), 1: range(8, 16)}, ["", ""]),
        ({"expert_shards": 2, "pin": True, "threads": 1}, {2: (5, 7, 9)}, ["5", "7"]),
    ],
)
def test_shards_keep_to_processors_of_one_node(
    tiny: Path, checkpoint: CheckpointFiles, changes: dict[str, object], nodes: dict[int, range], bound: list[str]
) -> None:
    members = {node: tuple(cpus) for node, cpus in nodes.items()}
    plan = make_plan(config(tiny, **changes), checkpoint, 16, members)
    shards = [share for share in plan.shares if share.seat.startswith("expert")]
    assert [share.cpus for share in shards] == bound
    for share in shards:
        if share.cpus:
            ExpertConfig(tiny, threads=share.threads, cpus=share.cpus)


def test_a_quota_smaller_than_the_machine_leaves_shards_unbound(tiny: Path, checkpoint: CheckpointFiles) -> None:
    nodes = {0: tuple(range(8)), 1: tuple(range(8, 16))}
    assert not any(share.cpus for share in make_plan(config(tiny), checkpoint, 15, nodes).shares)


def test_more_threads_than_a_node_has_are_refused(tiny: Path, checkpoint: CheckpointFiles) -> None:
    asked = config(tiny, pin=True, threads=3, expert_shards=2)
    with pytest.raises(ClusterError, match="pin: 2 shards of 3 threads do not fit on the 4 processors of NUMA node 0"):
        make_plan(asked, checkpoint, 4, {0: (0, 1, 2, 3)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"expert_shards": 100}, r"too little memory: .*; lower --expert-shards to \d+, or "),
        ({"attention_workers": 500}, r"too little memory: .*; lower --attention-workers to \d+, or "),
        ({"expert_shards": 100, "attention_workers": 100}, "lower --expert-shards and --attention-workers, or "),
        ({"expert_shards": 2, "memory_gib": 0.001}, r"memory_gib: 2 expert shards of 0\.001 GiB have room for \d+ of 192 experts"),
        ({"expert_shards": 3, "replicas": 3, "memory_gib": 0.002}, r"have room for \d+ of 576 experts, copies included"),
        ({"max_model_len": 1 << 23}, "max_model_len: 8388608 is more than the checkpoint's"),
    ],
)  # fmt: skip
def test_what_can_never_be_whole_is_no_plan(
    tiny: Path, checkpoint: CheckpointFiles, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ClusterError, match=message):
        fitting_plan(config(tiny, **changes), checkpoint, 2, NODES, 8 * GIB)


def test_more_shards_than_experts_are_no_plan_on_any_machine(tiny: Path, checkpoint: CheckpointFiles) -> None:
    with pytest.raises(ClusterError, match=r"expert_shards: 193 are more than the 192 experts, .* at most 192 can be"):
        fitting_plan(config(tiny, expert_shards=193), checkpoint, 2, NODES, 1 << 50)


def test_copies_in_spare_memory_are_part_of_the_plan(tiny: Path, checkpoint: CheckpointFiles) -> None:
    plan = make_plan(config(tiny, expert_shards=3, memory_gib=1.0, spare_memory=0.2), checkpoint, 2, NODES)
    assert sum(share.num_experts for share in plan.shares) == math.ceil(0.8 * 3 * 192)
    with pytest.raises(ClusterError, match="too little memory"):
        check_memory(plan.size, plan.budget, plan.memory_bytes - 1)
