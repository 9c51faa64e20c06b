"""Dispatches to a real shard over lanes of every kind, above all over shared memory: the same bits, no memory used too early or never again."""

import dataclasses
import gc
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from expertfleet.checkpoint.tensors import Checkpoint
from expertfleet.expert_workers.config import ExpertConfig
from expertfleet.expert_workers.server import ExpertServer
from expertfleet.kernels import native_lanes
from expertfleet.kernels.native import tensor_at
from expertfleet.membership.epoch import Epoch, EpochId, ExpertSet, Member
from expertfleet.proto.codec import Hello
from expertfleet.proto.errors import Code, FleetError
from expertfleet.proto.frame_prefix import OLDEST_WIRE_VERSION, WIRE_VERSION
from expertfleet.router.dispatch.layer_dispatch import LayerDispatch
from expertfleet.router.lanes import lane as lane_module
from expertfleet.router.lanes.grpc_connection import GrpcConnection
from expertfleet.router.lanes.local_connection import LocalConnection
from expertfleet.router.router import Router
from expertfleet.transport.io_thread import IoThread
from expertfleet.transport.reactor import Reactor

LAYER = 1


KINDS = ("local", "tcp", "grpc")


class End:
    """A router with one kind of lanes; ``versions`` are the oldest and the newest that it speaks.

    It is ready when the lane is up, or has been ``refused``; with TCP when frames take it, unless ``beside`` is false.
    """

    def __init__(
        self,
        io: IoThread,
        server: ExpertServer,
        kind: str,
        deadline_s: float = 20.0,
        versions: tuple[int, int] = (OLDEST_WIRE_VERSION, WIRE_VERSION),
        refused: bool = False,
        beside: bool = True,
        members: Sequence[ExpertServer] = (),
    ) -> None:
        self.config = server.checkpoint.config
        self.reactor = Reactor()
        hello = Hello("attention-0", server.checkpoint.fingerprint, "bfloat16", 1 << 24, *versions)
        allowed = {"local_lanes": kind == "local", "tcp_lanes": kind == "tcp"}
        self.router = Router(io, self.reactor, hello, deadline_s, **allowed)
        of_epoch = tuple(
            Member(f"expert-{number}", each.address, each.numerics, each.store.held)
            for number, each in enumerate(members or (server,))
        )
        self.router.set_epoch(Epoch(EpochId(1, 1), server.checkpoint.fingerprint, "bfloat16", of_epoch, (), True))
        self.reactor.step(0)
        self.lane = next(iter(self.router._lanes.values()))
        assert self.reactor.run(lambda: self.lane.last_error is not None if refused else self.router.usable, 20)
        assert refused or self.reactor.run(lambda: all(lane.up for lane in self.router._lanes.values()), 20)
        self.connection: Any = self.lane._connection
        if kind == "tcp" and beside and not refused:
            for lane in self.router._lanes.values():
                connection: Any = lane._connection
                assert self.reactor.run(lambda: connection._tcp.is_usable, 20)  # noqa: B023

    def dispatch(self, x: torch.Tensor, ids: torch.Tensor) -> LayerDispatch:
        return self.router.dispatch(LAYER, x, ids, torch.ones(ids.shape))

    def ask(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        with closing(self.dispatch(x, ids)) as dispatch:
            assert self.reactor.run(lambda: dispatch.done, 30)
            if dispatch.error is not None:
                raise dispatch.error
            return dispatch.combined()

    @property
    def areas(self) -> int:
        """In use: besides, one is reserved for the next frame, and some that were are kept for those after it."""
        assert isinstance(self.connection, LocalConnection)
        return len(self.connection._arena._areas) - len(self.connection._spare) - bool(self.lane.end.area_bytes)

    def close(self) -> None:
        self.router.close()
        self.reactor.close()


@pytest.fixture
def io() -> Iterator[IoThread]:
    io = IoThread("test-io")
    yield io
    io.stop()


@pytest.fixture
def server(small_checkpoint: Path) -> Iterator[ExpertServer]:
    server = ExpertServer(ExpertConfig(small_checkpoint))
    server.start()
    while server.registration.state != "ready":
        time.sleep(0.02)
    yield server
    server.stop(5)


@pytest.fixture
def end(io: IoThread, server: ExpertServer) -> Iterator[End]:
    end = End(io, server, kind="local")
    yield end
    end.close()


def drawn(checkpoint: Checkpoint, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    config = checkpoint.config
    ids = torch.stack([torch.randperm(config.num_experts)[: config.top_k] for _ in range(tokens)])
    return torch.randn(tokens, config.hidden_size).bfloat16(), ids


def test_all_kinds_of_lanes_give_the_same_bits_and_all_memory_comes_back(
    io: IoThread, server: ExpertServer, end: End
) -> None:
    with closing(End(io, server, "tcp")) as over_tcp, closing(End(io, server, "grpc")) as over_grpc:
        assert isinstance(end.connection, LocalConnection)
        assert isinstance(over_grpc.connection, GrpcConnection)
        for tokens in (1, 2, 33, 300):
            x, ids = drawn(server.checkpoint, tokens)
            found = end.ask(x, ids)
            assert torch.equal(found, over_tcp.ask(x, ids))
            assert torch.equal(found, over_grpc.ask(x, ids))
            assert end.areas == 0


def test_a_lane_that_is_gone_keeps_no_memory_at_either_end(io: IoThread, server: ExpertServer) -> None:
    gc.collect()
    gc.disable()
    try:
        before = num_shared_files()
        with closing(End(io, server, kind="local")) as end:
            x, ids = drawn(server.checkpoint, 4)
            end.ask(x, ids)
            unanswered = end.dispatch(x, ids)
            assert num_shared_files() > before
        unanswered.close()
        del unanswered
        give_up = time.monotonic() + 20
        while num_shared_files() > before:
            assert time.monotonic() < give_up, num_shared_files() - before
            time.sleep(0.02)
    finally:
        gc.enable()


def num_shared_files() -> int:
    """Of this process, in which both ends are."""
    files = Path("/proc/self/fd").iterdir()
    return sum("expertfleet-lane" in os.readlink(file) for file in files if file.is_symlink())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("worker", "shard", "version"), [((4, 5), (3, 4), 4), ((3, 4), (4, 5), 4), ((4, 5), (4, 5), 5), ((4, 5), (4, 4), 4)]
)
def test_ends_of_neighbouring_versions_talk_in_the_older(
    io: IoThread,
    server: ExpertServer,
    kind: str,
    worker: tuple[int, int],
    shard: tuple[int, int],
    version: int,
) -> None:
    server.lanes.hello = dataclasses.replace(server.lanes.hello, oldest=shard[0], newest=shard[1])
    with closing(End(io, server, kind, versions=worker)) as end:
        assert end.lane.version == version
        x, ids = drawn(server.checkpoint, 33)
        assert torch.isfinite(end.ask(x, ids)).all()
        end.dispatch(x, ids).close()
        server.store.raise_min_epoch(EpochId(9, 9))
        with closing(end.dispatch(x, ids)) as dispatch:  # what is refused is refused in that version, too
            assert end.reactor.run(lambda: bool(dispatch._refusal), 10)
            assert "STALE_EPOCH" in dispatch._refusal


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("worker", "shard"), [((4, 5), (2, 3)), ((2, 3), (4, 5)), ((4, 5), (6, 6)), ((4, 4), (5, 6))])
def test_ends_without_a_common_version_refuse_each_other_and_say_why(
    io: IoThread, server: ExpertServer, kind: str, worker: tuple[int, int], shard: tuple[int, int]
) -> None:
    server.lanes.hello = dataclasses.replace(server.lanes.hello, oldest=shard[0], newest=shard[1])
    with closing(End(io, server, kind, versions=worker, refused=True)) as end:
        assert not end.lane.up
        error = end.lane.last_error
        assert error is not None
        assert error.code is Code.WIRE_VERSION
        theirs, own = (str(a) if a == b else f"{a} to {b}" for a, b in (worker, shard))
        assert str(error) == f"wire version {theirs}; this end speaks {own}"


def test_more_routes_than_a_message_holds_travel_in_several_frames(server: ExpertServer, end: End) -> None:
    x, ids = drawn(server.checkpoint, 3000)
    found = end.ask(x, ids)
    assert end.router.counters.frames > 1
    for first in (0, 2999):
        assert torch.equal(end.ask(x[first : first + 1], ids[first : first + 1])[0], found[first])
    assert end.areas == 0


def test_memory_of_a_frame_that_nobody_waits_for_is_kept_until_the_shard_has_ended_it(
    io: IoThread, server: ExpertServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, computing = threading.Event(), threading.Event()
    layer = server.store.layers[LAYER]
    real = layer.apply_at

    def slow(*call: int) -> None:
        computing.set()
        go.wait(20)
        real(*call)

    monkeypatch.setattr(layer, "apply_at", slow)
    with closing(End(io, server, kind="local", deadline_s=0.3)) as end:
        x, ids = drawn(server.checkpoint, 2)
        with pytest.raises(FleetError, match="no answer from expert-0") as caught:
            end.ask(x, ids)
        assert caught.value.code is Code.DEADLINE
        assert computing.is_set()
        assert end.areas == 1
        go.set()
        assert end.reactor.run(lambda: end.areas == 0, 10)
        assert torch.isfinite(end.ask(x, ids)).all()


def test_a_dispatch_closed_under_way_is_cancelled(server: ExpertServer, end: End) -> None:
    x, ids = drawn(server.checkpoint, 500)
    dispatch = end.dispatch(x, ids)
    dispatch.close()
    assert dispatch.error is not None
    assert dispatch.error.code is Code.CANCELLED
    assert end.reactor.run(lambda: end.areas == 0, 10)
    assert not end.lane._frames.open


@pytest.mark.parametrize("kind", ["local", "tcp"])
def test_answers_that_nobody_waits_for_are_written_down_nowhere(io: IoThread, server: ExpertServer, kind: str) -> None:
    x, ids = drawn(server.checkpoint, 4)
    with closing(End(io, server, kind)) as end:
        wanted = end.ask(x, ids)
        closed = [end.dispatch(x, ids) for _ in range(3)]
        places = [dispatch._answers.prepare() or dispatch._answers._call.places for dispatch in closed]  # type: ignore[union-attr,func-returns-value]
        for dispatch in closed:
            dispatch.close()
        for _ in range(5):
            assert torch.equal(end.ask(x, ids), wanted)
        assert end.reactor.run(lambda: not end.lane._frames.open, 10)
        assert not any(any(each) for each in places)


def test_answers_that_came_outlive_the_lane(server: ExpertServer, end: End) -> None:
    x, ids = drawn(server.checkpoint, 4)
    wanted = end.ask(x, ids)
    with closing(end.dispatch(x, ids)) as dispatch:
        assert end.reactor.run(lambda: dispatch.done, 10)
        server.stop(5)
        assert end.reactor.run(lambda: not end.lane.up, 10)
        assert torch.equal(dispatch.combined(), wanted)


@pytest.mark.parametrize("kind", ["local", "tcp"])
def test_answers_of_a_shard_that_is_gone_are_summed_with_those_still_to_come(
    io: IoThread, server: ExpertServer, small_checkpoint: Path, kind: str
) -> None:
    go, shards = threading.Event(), []
    for number, experts in enumerate(("0-31", "32-63")):
        shard = ExpertServer(ExpertConfig(small_checkpoint, seat=f"expert-{number}", experts=experts))
        if number:
            real = shard.runtime.at_once
            shard.runtime.at_once = lambda *asked, real=real: go.wait(10) and real(*asked)  # type: ignore[misc]
        shard.start()
        shards.append(shard)
    for shard in shards:
        while shard.registration.state != "ready":
            time.sleep(0.02)
    x, ids = drawn(server.checkpoint, 4)
    ids[:, :2] = torch.tensor([3, 40])
    with closing(End(io, server, kind)) as whole:
        wanted = whole.ask(x, ids)
    with closing(End(io, shards[0], kind, members=shards)) as end, closing(end.dispatch(x, ids)) as dispatch:
        assert end.reactor.run(lambda: len(dispatch._kept) == 1, 10)
        assert dispatch._kept[0].routes_at, "it was asked and answered by compiled calls"
        lane = dispatch._kept[0].lane
        shards[0].stop(0)
        assert end.reactor.run(lambda: not lane.up, 10)
        gc.collect()
        junk = [torch.full((1 << 20,), 7.0) for _ in range(20)]
        go.set()
        assert end.reactor.run(lambda: dispatch.done, 10)
        assert dispatch.error is None
        assert torch.equal(dispatch.combined(), wanted)
        del junk
    shards[1].stop(0)


@pytest.mark.parametrize("kind", ["local", "tcp"])
def test_either_end_may_be_without_compiled_calls(
    io: IoThread, server: ExpertServer, small_checkpoint: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = [drawn(server.checkpoint, tokens) for tokens in (1, 4, 20)]
    with closing(End(io, server, kind)) as end:
        wanted = [end.ask(*question) for question in questions]
    with monkeypatch.context() as without:
        without.setattr(native_lanes, "calls", lambda: None)
        plain = ExpertServer(ExpertConfig(small_checkpoint))
        plain.start()
        while plain.registration.state != "ready":
            time.sleep(0.02)
        ends = [End(io, server, kind), End(io, plain, kind)]
    for end in (*ends, End(io, plain, kind)):
        with closing(end):
            for question, total in zip(questions, wanted, strict=True):
                assert torch.equal(end.ask(*question), total)
    plain.stop(0)


@pytest.mark.parametrize("kind", ["local", "tcp"])
def test_what_is_not_finite_is_asked_of_another_shard(
    io: IoThread, server: ExpertServer, small_checkpoint: Path, kind: str
) -> None:
    other = ExpertServer(ExpertConfig(small_checkpoint, seat="expert-1"))
    other.start()
    while other.registration.state != "ready":
        time.sleep(0.02)
    layer, hidden = other.store.layers[LAYER], other.checkpoint.config.hidden_size
    real = layer.apply_at

    def spoil(x: int, num_rows: int, rows: int, experts: int, num_routes: int, out: int) -> None:
        real(x, num_rows, rows, experts, num_routes, out)
        tensor_at(out, (num_routes, hidden), torch.bfloat16)[0, 3] = torch.nan

    x, ids = drawn(server.checkpoint, 4)
    with closing(End(io, server, kind)) as whole:
        wanted = whole.ask(x, ids)
    layer.apply_at = spoil  # type: ignore[method-assign]
    with closing(End(io, server, kind, members=(server, other))) as end:
        with closing(end.dispatch(x, ids)) as dispatch:
            assert len(dispatch._frames) == 2
            assert all(part.routes_at for part in dispatch._frames.values())
            assert end.reactor.run(lambda: dispatch.done, 10)
            assert dispatch.error is None
            assert not dispatch.faults
            assert torch.equal(dispatch.combined(), wanted)
        assert end.router.quarantined == [other.address]
    other.stop(0)


def test_what_is_computed_when_a_shard_is_stopped_has_its_memory_to_the_end(server: ExpertServer, end: End) -> None:
    x, ids = drawn(server.checkpoint, 1)
    layer, computing = server.store.layers[LAYER], threading.Event()
    real = layer.apply_at

    def slow(*asked: int) -> None:
        computing.set()
        time.sleep(0.5)
        real(*asked)

    layer.apply_at = slow  # type: ignore[method-assign]
    with closing(end.dispatch(x, ids)):
        assert computing.wait(10)
        assert not server.stop(0)
        assert server.runtime.join(10)
    assert server.runtime.counters.batches == 1


def test_without_shared_memory_the_lane_goes_over_grpc_and_says_so(
    io: IoThread, server: ExpertServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing() -> None:
        raise OSError("not here")

    monkeypatch.setattr(lane_module, "Arena", missing)
    with closing(End(io, server, kind="local")) as end:
        assert isinstance(end.connection, GrpcConnection)
    assert "expert-0 is reached over gRPC, as there is no shared memory: not here" in caplog.text


def test_an_answer_that_was_not_asked_for_ends_the_lane(server: ExpertServer, end: End) -> None:
    """The shard says that it has answered nine of nine routes, as many as it was never asked for."""
    (lane,) = server.lanes.local_lanes
    x, ids = drawn(server.checkpoint, 80)  # more than are computed as soon as they are read
    real = lane.send
    lane.send = lambda frame: real(frame[:20] + b"\x09\0\0\0" * 2 + frame[28:])
    with closing(end.dispatch(x, ids)) as dispatch:
        assert end.reactor.run(lambda: not end.lane.up, 10)
        assert not dispatch.done
        assert end.reactor.run(lambda: end.lane.up, 10)
        assert end.reactor.run(lambda: dispatch.done, 10)
        assert dispatch.error is None


def test_rows_whose_experts_nobody_holds_wait_and_the_others_go_out_alone(io: IoThread, server: ExpertServer) -> None:
    with closing(End(io, server, "local")) as end:
        for held in (range(0), range(3)):
            config = end.config
            pairs = [(LAYER, expert) for expert in held]
            mask = ExpertSet.from_pairs(pairs, config.num_layers, config.num_experts)
            members = (Member("expert-0", server.address, server.numerics, mask),) if pairs else ()
            end.router.set_epoch(Epoch(EpochId(1, 2), server.checkpoint.fingerprint, "bfloat16", members, (), False))
            end.reactor.step(0)
            is_there = bool(pairs)
            assert end.reactor.run(
                lambda want=is_there: want == any(lane.up for lane in end.router._lanes.values()), 20
            )
            x, ids = drawn(server.checkpoint, 33)
            with closing(end.dispatch(x, ids)) as dispatch:
                asked = ids.reshape(-1).numpy()
                sent = [
                    (part, part.row_ids if part.row_ids is not None else torch.arange(33))
                    for part in dispatch._frames.values()
                ]
                routes = [route for part, _ in sent for route in part.routes.tolist()]
                assert sorted([*routes, *dispatch._waiting.tolist()]) == list(range(len(asked)))
                assert all(asked[route] in held for route in routes)
                assert not any(asked[route] in held for route in dispatch._waiting)
                for part, row_ids in sent:
                    assert (
                        row_ids[part.wire.route_rows.tolist()] == torch.from_numpy(part.routes) // config.top_k
                    ).all()
                    assert len(row_ids) == len(set((part.routes // config.top_k).tolist()))
