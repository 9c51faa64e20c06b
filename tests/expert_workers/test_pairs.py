"""Shards as processes of their own that die or fall silent in the middle of a transfer."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from gloo import over_gloo  # noqa: F401 - a fixture for all of this module

from expertfleet.checkpoint.make_tiny import make_tiny
from expertfleet.checkpoint.tensors import Checkpoint
from expertfleet.membership.epoch import Epoch, EpochId, ExpertSet, Member
from expertfleet.proto.codec import Hello
from expertfleet.proto.errors import Code, FleetError
from expertfleet.router.dispatch.layer_dispatch import LayerDispatch
from expertfleet.router.lanes.grpc_connection import GrpcConnection
from expertfleet.router.lanes.lane import Lane
from expertfleet.router.router import Router
from expertfleet.transport.io_thread import IoThread
from expertfleet.transport.pair import Pair
from expertfleet.transport.pair_group import PairSettings
from expertfleet.transport.reactor import Reactor

LAYER, HIDDEN, TOKENS = 1, 4096, 800  # 6.5 MB of rows: more than sockets hold


class Fleet:
    """A router in this process and shards in theirs; ``held`` are the experts that each shard serves."""

    def __init__(self, checkpoint: Checkpoint, processes: list[Any], held: list[list[int]]) -> None:
        self.config = checkpoint.config
        self.io, self.reactor = IoThread("test-io"), Reactor()
        self.processes = processes
        hello = Hello("attention-0", checkpoint.fingerprint, "bfloat16", 64 << 20, pair="nccl")
        self.router = Router(self.io, self.reactor, hello, 60.0, local_lanes=False, pair=PairSettings("nccl", 1 << 10))
        members = []
        for number, experts in enumerate(held):
            pairs = [(LAYER, expert) for expert in experts]
            held_there = ExpertSet.from_pairs(pairs, self.config.num_layers, self.config.num_experts)
            members.append(Member(f"expert-{number}", processes[number].address(), "any", held_there))
        self.router.set_epoch(Epoch(EpochId(1, 1), checkpoint.fingerprint, "bfloat16", tuple(members), (), False))
        assert self.reactor.run(lambda: len(self.lanes) == len(held) and all(lane.up for lane in self.lanes), 60)
        for lane in self.lanes:
            self.wait_for(lane, 1)

    @property
    def lanes(self) -> list[Lane]:
        return sorted(self.router._lanes.values(), key=lambda lane: lane.seat)

    def pair(self, lane: Lane) -> Pair | None:
        connection = lane._connection
        return connection._pairs.pair if isinstance(connection, GrpcConnection) and connection._pairs else None

    def wait_for(self, lane: Lane, generation: int) -> None:
        def there() -> bool:
            pair = self.pair(lane)
            return pair is not None and pair.generation == generation and pair.usable

        ends_at = time.monotonic() + 60
        while not there():  # nothing of a pair rouses the reactor
            assert time.monotonic() < ends_at
            self.reactor.step(0.05)

    def dispatch(self, tokens: int, expert: int = 3) -> LayerDispatch:
        ids = torch.full((tokens, 1), expert)
        x = torch.ones(tokens, self.config.hidden_size).bfloat16()
        return self.router.dispatch(LAYER, x, ids, torch.ones(ids.shape))

    def outcome(self, dispatch: LayerDispatch) -> torch.Tensor:
        with closing(dispatch):
            assert self.reactor.run(lambda: dispatch.done, 90)
            if dispatch.error is not None:
                raise dispatch.error
            return dispatch.combined()

    def signal(self, number: int, which: signal.Signals) -> None:
        os.kill(self.processes[number].popen.pid, which)

    def close(self) -> None:
        self.router.close()
        self.io.stop()
        self.reactor.close()


@pytest.fixture
def make_fleet(start: Callable[..., Any], tmp_path: Path) -> Iterator[Callable[..., Fleet]]:
    made: list[Fleet] = []
    model = tmp_path / "model"
    make_tiny(model, hidden=HIDDEN, layers=2, experts=16, expert_width=32, dense_width=32, vocab=512)

    def make(*held: list[int]) -> Fleet:
        flags = ("--model", model, "--pair-transport", "nccl", "--pair-min-kib", 1)
        processes = [start("expert_workers", "--seat", f"expert-{number}", *flags) for number in range(len(held))]
        made.append(Fleet(Checkpoint.open(model), processes, list(held)))
        for number in range(len(held)):  # loaded, and warm
            made[-1].outcome(made[-1].dispatch(2, held[number][-1]))
        return made[-1]

    yield make
    for fleet in made:
        fleet.close()


@pytest.mark.slow
def test_a_shard_killed_in_the_middle_of_a_transfer_is_replaced_by_its_replica(
    make_fleet: Callable[..., Fleet],
) -> None:
    fleet = make_fleet([3, 4], [3, 5])
    fleet.signal(0, signal.SIGSTOP)
    dispatch = fleet.dispatch(TOKENS)
    (stopped, _) = fleet.lanes
    fleet.reactor.run(lambda: False, 0.3)
    pair = fleet.pair(stopped)
    assert pair is not None
    assert pair._kept, "nothing was under way to the shard that dies"
    fleet.signal(0, signal.SIGKILL)
    rows = fleet.outcome(dispatch)
    assert rows.shape[0] == TOKENS
    assert torch.equal(rows[:1].expand_as(rows), rows)
    assert fleet.router.counters.retried_frames


@pytest.mark.slow
def test_a_silent_shard_is_given_up_in_time_harms_no_other_lane_and_comes_back(
    make_fleet: Callable[..., Fleet],
) -> None:
    fleet = make_fleet([3], [5])
    silent, other = fleet.lanes
    wanted = fleet.outcome(fleet.dispatch(64))
    fleet.signal(0, signal.SIGSTOP)
    try:
        fleet.router.layer_deadline_s = 2.0
        began = time.monotonic()
        dispatch = fleet.dispatch(TOKENS)
        fleet.router.layer_deadline_s = 60.0
        pair, others = fleet.pair(silent), fleet.pair(other)
        assert pair is not None
        assert others is not None
        assert torch.isfinite(fleet.outcome(fleet.dispatch(64, expert=5))).all()
        with pytest.raises(FleetError, match="no answer from expert-0") as caught:
            fleet.outcome(dispatch)
        assert caught.value.code is Code.DEADLINE
        assert time.monotonic() - began < 30
        assert pair.ended
        assert others.usable
        again = fleet.dispatch(64)  # over the stream, which the shard reads when it can
    finally:
        fleet.signal(0, signal.SIGCONT)
    assert torch.equal(fleet.outcome(again), wanted)
    if silent._connection is not None and fleet.pair(silent) is not None:
        fleet.wait_for(silent, 2)
    assert torch.equal(fleet.outcome(fleet.dispatch(64)), wanted)
    assert others.generation == 1
