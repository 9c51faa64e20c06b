"""What a shard answers beside what it was asked has one consequence, whichever way the lane takes: the lane ends, and a replica is asked."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from gloo import over_gloo  # noqa: F401 - a fixture for all of this module

from expertfleet.expert_workers.config import ExpertConfig
from expertfleet.expert_workers.handler import LocalLaneServer
from expertfleet.expert_workers.server import ExpertServer
from expertfleet.kernels import native_lanes
from expertfleet.membership.epoch import Epoch, EpochId, Member
from expertfleet.proto.codec import (
    Hello,
    ResultShm,
    encode_cancel,
    encode_error,
    encode_hello,
    encode_result_shm,
    result_parts,
)
from expertfleet.proto.errors import Code, FleetError
from expertfleet.proto.rows import Rows
from expertfleet.router.dispatch.layer_dispatch import LayerDispatch
from expertfleet.router.lanes import sent_frames
from expertfleet.router.lanes.frame_in_flight import FrameInFlight
from expertfleet.router.lanes.lane import Lane
from expertfleet.router.router import Router
from expertfleet.transport.io_thread import IoThread
from expertfleet.transport.pair_group import PairSettings
from expertfleet.transport.reactor import Reactor

LAYER = 1
LEAST_KIB = 8
TOKENS = {"local": 4, "tcp": 4, "tcp-large": 300, "grpc": 4, "pair": 40}
WAYS = [  # each with compiled calls, and without where those would read its answers
    *((way, "compiled") for way in TOKENS),
    ("local", "python"),
    ("tcp", "python"),
]


class End:
    """A router and its lanes to shards that hold the same experts; ``lane`` is the one to the shard that does wrong."""

    def __init__(self, io: IoThread, servers: Sequence[ExpertServer], way: str, deadline_s: float = 20.0) -> None:
        self.way, self.servers, self.reactor = way, servers, Reactor()
        checkpoint = servers[0].checkpoint
        pair: Any = "nccl" if way == "pair" else "none"
        hello = Hello("attention-0", checkpoint.fingerprint, "bfloat16", 1 << 24, pair=pair)
        allowed = {"local_lanes": way == "local", "tcp_lanes": way.startswith("tcp")}
        self.router = Router(io, self.reactor, hello, deadline_s, **allowed, pair=PairSettings(pair, LEAST_KIB << 10))
        members = tuple(
            Member(server.config.seat, server.address, server.numerics, server.store.held) for server in servers
        )
        self.router.set_epoch(Epoch(EpochId(1, 1), checkpoint.fingerprint, "bfloat16", members, (), True))
        assert self.until(lambda: len(self.lanes) == len(servers) and all(map(self.is_usable, self.lanes)))
        self.lane = next(lane for lane in self.lanes if lane.seat == "expert-0")

    @property
    def lanes(self) -> list[Lane]:
        return list(self.router._lanes.values())

    def is_usable(self, lane: Lane) -> bool:
        connection: Any = lane._connection
        if not lane.up:
            return False
        if self.way == "pair":
            return bool(connection._pairs.pair.usable)
        return not self.way.startswith("tcp") or bool(connection._tcp.is_usable)

    def drawn(self) -> tuple[torch.Tensor, torch.Tensor]:
        config, tokens = self.servers[0].checkpoint.config, TOKENS[self.way]
        ids = torch.stack([torch.randperm(config.num_experts)[: config.top_k] for _ in range(tokens)])
        return torch.randn(tokens, config.hidden_size).bfloat16(), ids

    def dispatch(self, x: torch.Tensor, ids: torch.Tensor) -> LayerDispatch:
        return self.router.dispatch(LAYER, x, ids, torch.ones(ids.shape))

    def outcome(self, dispatch: LayerDispatch) -> torch.Tensor:
        with closing(dispatch):
            assert self.reactor.run(lambda: dispatch.done, 20)
            if dispatch.error is not None:
                raise dispatch.error
            return dispatch.combined()

    def until(self, condition: Callable[[], bool]) -> bool:
        """Also for what another thread does."""
        ends_at = time.monotonic() + 10
        while not condition() and time.monotonic() < ends_at:
            self.reactor.step(0.005)
        return condition()

    def close(self) -> None:
        self.router.close()
        self.reactor.close()


class Lie:
    """One lane of a shard, and a frame that it was asked: ``say`` is an answer to it over the lane's own way of results."""

    def __init__(self, way: str, lane: Any, job: Any, first: int, rows: Rows) -> None:
        self.way, self.lane, self.job, self.first, self.rows = way, lane, job, first, rows
        self.frame_id, self.num_routes = job.frame.frame_id, job.num_routes

    def say(self, first: int, rows: Rows, *, num_routes: int = 0, frame_id: int | None = None) -> None:
        frame_id, num_routes = self.frame_id if frame_id is None else frame_id, num_routes or self.num_routes
        lane = self.lane
        if self.way == "local":
            self.job.results.part(min(first, self.num_routes - rows.count), rows.count).copy(rows)
            lane.send(encode_result_shm(ResultShm(frame_id, first, rows.count, num_routes), lane.version))
        elif self.way == "pair":
            frame = SimpleNamespace(frame_id=frame_id)
            lane.pairs.deliver(
                SimpleNamespace(frame=frame, num_routes=num_routes, expires_at=self.job.expires_at), first, rows
            )
        else:
            lane.send(b"".join(map(bytes, result_parts(frame_id, first, num_routes, rows, lane.version))))

    def refuse(self, code: Code, frame_id: int | None = None) -> None:
        error = FleetError(code, "odd")
        self.lane.send(encode_error(self.frame_id if frame_id is None else frame_id, error, self.lane.version))

    def tell(self) -> None:
        """The truth, at once."""
        self.say(self.first, self.rows)

    def of(self, width: int, dtype: torch.dtype) -> Rows:
        return Rows.of(torch.ones(self.rows.count, width, dtype=dtype))


@pytest.fixture(scope="module")
def io() -> Iterator[IoThread]:
    io = IoThread("test-io")
    yield io
    io.stop()


def started(checkpoint: Path, **settings: Any) -> list[ExpertServer]:
    servers = [ExpertServer(ExpertConfig(checkpoint, seat=f"expert-{number}", **settings)) for number in range(2)]
    for server in servers:
        server.start()
    for server in servers:
        while server.registration.state != "ready":
            time.sleep(0.02)
    return servers


@pytest.fixture(scope="module")
def plain_servers(small_checkpoint: Path) -> Iterator[list[ExpertServer]]:
    servers = started(small_checkpoint)
    yield servers
    for server in servers:
        server.stop(5)


@pytest.fixture(scope="module")
def pair_servers(small_checkpoint: Path) -> Iterator[list[ExpertServer]]:
    servers = started(small_checkpoint, pair_transport="nccl", pair_min_kib=LEAST_KIB)
    yield servers
    for server in servers:
        server.stop(5)


@pytest.fixture(params=WAYS, ids="-".join)
def end(request: pytest.FixtureRequest, io: IoThread, monkeypatch: pytest.MonkeyPatch) -> Iterator[End]:
    way, called = request.param
    if called == "compiled":
        request.getfixturevalue("calls")
    servers = request.getfixturevalue("pair_servers" if way == "pair" else "plain_servers")
    with monkeypatch.context() as patch:
        if called == "python":
            patch.setattr(native_lanes, "calls", lambda: None)
        end = End(io, servers, way)
    with closing(end):
        yield end


@contextmanager
def misled(end: End, deliver: Callable[[Lie], object]) -> Iterator[list[Lie]]:
    """The first shard's lanes of now deliver so; what they were given is told."""
    handler = end.servers[0].lanes
    at_once, handler.fast_path._at_once = handler.fast_path._at_once, lambda *asked: False
    heard: list[Lie] = []

    def instead(lane: Any, job: Any, first: int, rows: Rows) -> None:
        heard.append(Lie(end.way, lane, job, first, rows))
        deliver(heard[-1])

    lanes: list[Any] = [*handler.local_lanes, *handler.tcp_lanes, *handler._tickets.values()]
    for lane in lanes:
        lane.deliver = partial(instead, lane)
    try:
        yield heard
    finally:
        handler.fast_path._at_once = at_once
        for lane in lanes:
            del lane.deliver


def half_twice(lie: Lie) -> None:
    half = lie.rows.part(0, lie.rows.count // 2)
    lie.say(lie.first, half)
    lie.say(lie.first, half)


def all_twice(lie: Lie) -> None:
    lie.tell()
    lie.tell()


def all_and_the_last_again(lie: Lie) -> None:
    lie.tell()
    lie.say(lie.rows.count - 1, lie.rows.part(lie.rows.count - 1, 1))


def half_and_then_all(lie: Lie) -> None:
    lie.say(0, lie.rows.part(0, lie.rows.count // 2))
    lie.tell()


def last_first(lie: Lie) -> None:
    half = lie.rows.count // 2
    lie.say(half, lie.rows.part(half, lie.rows.count - half))
    lie.say(0, lie.rows.part(0, half))


def one_left_out(lie: Lie) -> None:
    lie.say(0, lie.rows.part(0, 1))
    lie.say(2, lie.rows.part(2, 1))


DUPLICATES = [half_twice, all_twice, all_and_the_last_again, half_and_then_all]
FAULTS: dict[str, Callable[[Lie], object]] = {
    "last first": last_first,
    "one left out": one_left_out,
    "of more routes than were asked": lambda lie: lie.say(0, lie.rows, num_routes=lie.num_routes + 1),
    "beyond the last route": lambda lie: lie.say(lie.num_routes, lie.rows.part(0, 1), num_routes=lie.num_routes + 1),
    "of fewer routes than were asked": lambda lie: lie.say(0, lie.rows.part(0, 1), num_routes=1),
    "a frame of the future": lambda lie: lie.say(0, lie.rows, frame_id=lie.frame_id + 1000),
    "frame 0": lambda lie: lie.say(0, lie.rows, frame_id=0),
    "a refusal of a frame of the future": lambda lie: lie.refuse(Code.OVERLOADED, lie.frame_id + 1000),
    "a cancelled frame that nobody cancelled": lambda lie: lie.refuse(Code.CANCELLED),
    "two refusals": lambda lie: (lie.refuse(Code.NOT_HELD), lie.refuse(Code.NOT_HELD)),
    "a greeting": lambda lie: lie.lane.send(encode_hello(Hello("expert-0", "", "bfloat16", 1 << 20))),
    "a cancel": lambda lie: lie.lane.send(encode_cancel(lie.frame_id, lie.lane.version)),
    "a frame of another version": lambda lie: lie.lane.send(encode_result_shm(ResultShm(lie.frame_id, 0, 1, 1), 77)),
    "no frame": lambda lie: lie.lane.send(b"no frame at all"),
    "half a header": lambda lie: lie.lane.send(encode_error(lie.frame_id, FleetError(Code.DRAINING, ""))[:17]),
}
OF_ROWS: dict[str, Callable[[Lie], object]] = {
    "too narrow": lambda lie: lie.say(0, lie.of(lie.rows.width // 2, lie.rows.dtype)),
    "too wide": lambda lie: lie.say(0, lie.of(lie.rows.width + 1, lie.rows.dtype)),
    "another dtype": lambda lie: lie.say(0, lie.of(lie.rows.width, torch.float32)),
    "another dtype of as many bytes": lambda lie: lie.say(0, lie.of(lie.rows.width // 2, torch.float32)),
    "filled where nothing is shared": lambda lie: lie.lane.send(
        encode_result_shm(ResultShm(lie.frame_id, 0, lie.rows.count, lie.num_routes), lie.lane.version)
    ),
}


def check_one_fate(end: End, lie: Callable[[Lie], object], caplog: pytest.LogCaptureFixture) -> None:
    """The lane ends, naming the shard; whoever waits gets the right bits from a replica; a new lane is asked as ever."""
    x, ids = end.drawn()
    wanted = end.outcome(end.dispatch(x, ids))
    connection = end.lane._connection
    with misled(end, lie) as heard:
        dispatch = end.dispatch(x, ids)
        assert end.until(lambda: bool(heard) and end.lane._connection is not connection)
        assert torch.equal(end.outcome(dispatch), wanted)
    (said,) = {record.getMessage() for record in caplog.records if "is down" in record.message}
    assert said.startswith(f"lane to expert-0 at {end.lane.address} is down: ")
    assert all(lane.up for lane in end.lanes if lane is not end.lane)
    assert end.until(lambda: all(map(end.is_usable, end.lanes)))
    assert torch.equal(end.outcome(end.dispatch(x, ids)), wanted)


@pytest.mark.parametrize("lie", DUPLICATES)
def test_a_duplicate_answer_ends_the_lane_and_a_replica_is_asked(
    end: End, lie: Callable[[Lie], object], caplog: pytest.LogCaptureFixture
) -> None:
    check_one_fate(end, lie, caplog)
    assert "expert-0 answered frame " in caplog.text


@pytest.mark.parametrize("lie", FAULTS.values(), ids=FAULTS.keys())
def test_an_answer_that_contradicts_what_was_asked_has_the_fate_of_a_duplicate(
    end: End, lie: Callable[[Lie], object], caplog: pytest.LogCaptureFixture
) -> None:
    check_one_fate(end, lie, caplog)


@pytest.mark.parametrize("end", [way for way in WAYS if way[0] != "local"], ids="-".join, indirect=True)
@pytest.mark.parametrize("lie", OF_ROWS.values(), ids=OF_ROWS.keys())
def test_rows_that_were_not_asked_for_have_the_fate_of_a_duplicate(
    end: End, lie: Callable[[Lie], object], caplog: pytest.LogCaptureFixture
) -> None:
    """Over shared memory rows lie where this end has put them."""
    check_one_fate(end, lie, caplog)


def test_a_duplicate_after_the_layer_is_closed_ends_the_lane(end: End, caplog: pytest.LogCaptureFixture) -> None:
    x, ids = end.drawn()
    connection = end.lane._connection
    with misled(end, Lie.tell) as heard:
        end.outcome(end.dispatch(x, ids))
    assert end.lane._connection is connection
    end.servers[0].reactor.post(heard[0].lane.send, encode_error(heard[0].frame_id, FleetError(Code.DRAINING, "odd")))
    assert end.until(lambda: end.lane._connection is not connection)
    assert f"expert-0 answered frame {heard[0].frame_id} with a Error" in caplog.text


def test_a_duplicate_of_rows_after_the_layer_is_closed_ends_the_lane(
    end: End, caplog: pytest.LogCaptureFixture
) -> None:
    x, ids = end.drawn()
    connection = end.lane._connection
    with misled(end, Lie.tell) as heard:
        end.outcome(end.dispatch(x, ids))
    assert end.lane._connection is connection
    end.servers[0].reactor.post(heard[0].tell)
    assert end.until(lambda: end.lane._connection is not connection)
    assert "expert-0 answered frame" in caplog.text


def test_a_late_answer_to_a_frame_that_was_given_up_is_passed_over_and_its_duplicate_is_a_fault(
    end: End, caplog: pytest.LogCaptureFixture
) -> None:
    x, ids = end.drawn()
    wanted = end.outcome(end.dispatch(x, ids))
    connection = end.lane._connection
    with misled(end, lambda lie: None) as heard:
        for _ in range(3):
            before, dispatch = len(heard), end.dispatch(x, ids)
            assert end.until(lambda: len(heard) > before)  # noqa: B023
            dispatch.close()
            lie = heard[-1]
            half = lie.rows.count // 2
            post = end.servers[0].reactor.post
            post(lie.say, 0, lie.rows.part(0, half))
            post(lie.say, half, lie.rows.part(half, lie.rows.count - half))
            end.reactor.run(lambda: False, 0.1)
        assert end.lane._connection is connection
        assert not caplog.records
    assert torch.equal(end.outcome(end.dispatch(x, ids)), wanted)
    assert end.lane._connection is connection
    post(lie.tell)
    assert end.until(lambda: end.lane._connection is not connection)


@pytest.mark.parametrize("way", ["grpc", "tcp"])
def test_a_late_refusal_of_a_frame_that_was_given_up_is_no_fault_and_a_second_one_is(
    io: IoThread, plain_servers: list[ExpertServer], way: str
) -> None:
    with closing(End(io, plain_servers, way)) as end:
        x, ids = end.drawn()
        connection = end.lane._connection
        with misled(end, lambda lie: None) as heard:
            dispatch = end.dispatch(x, ids)
            assert end.until(lambda: bool(heard))
            dispatch.close()
        end.servers[0].reactor.post(heard[0].refuse, Code.EXPIRED)
        end.reactor.run(lambda: False, 0.2)
        assert end.lane._connection is connection
        end.servers[0].reactor.post(heard[0].refuse, Code.EXPIRED)
        assert end.until(lambda: end.lane._connection is not connection)


def test_nothing_of_a_connection_is_believed_after_its_fault(
    io: IoThread, plain_servers: list[ExpertServer], caplog: pytest.LogCaptureFixture
) -> None:
    with closing(End(io, plain_servers[:1], "grpc")) as end:
        x, ids = end.drawn()
        wanted = end.outcome(end.dispatch(x, ids))

        def lie(lie: Lie) -> None:
            lie.say(0, lie.rows, frame_id=lie.frame_id + 5)
            lie.say(0, lie.of(lie.rows.width, lie.rows.dtype))  # of the right shape, and wrong

        with misled(end, lie):
            dispatch = end.dispatch(x, ids)
            assert torch.equal(end.outcome(dispatch), wanted)
        assert end.router.counters.retried_frames == 1


def test_without_a_replica_a_shard_that_goes_on_lying_is_named_when_the_layers_time_is_over(
    io: IoThread, plain_servers: list[ExpertServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain_servers[0].lanes.fast_path, "_at_once", lambda *asked: False)
    monkeypatch.setattr(
        LocalLaneServer,
        "deliver",
        lambda lane, job, first, rows: all_twice(Lie("local", lane, job, 1, rows.part(0, 1))),
    )
    with closing(End(io, plain_servers[:1], "local", deadline_s=1.0)) as end:
        with pytest.raises(
            FleetError, match=r"last refusal: LANE_LOST .*expert-0 broke: expert-0 answered frame "
        ) as caught:
            end.outcome(end.dispatch(*end.drawn()))
        assert caught.value.code in (Code.NO_REPLICA, Code.DEADLINE)
        assert end.router.counters.retried_frames > 1


def test_a_shard_that_greets_over_tcp_with_something_else_ends_the_lane(
    io: IoThread, plain_servers: list[ExpertServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(End(io, plain_servers[:1], "tcp")) as end:
        connection: Any = end.lane._connection
        way = connection._tcp._large
        way.usable = False
        connection._tcp._received(way, encode_cancel(1))
        assert end.until(lambda: end.lane._connection is not connection)


def test_of_very_many_frames_that_were_given_up_the_oldest_are_forgotten_and_may_still_be_answered() -> None:
    frames = sent_frames.SentFrames()
    for frame_id in range(1, 5001):
        rows, lane = Rows.of(torch.zeros(1, 8).bfloat16()), cast(Any, None)
        frames.open[frame_id] = FrameInFlight(None, lane, frame_id, np.zeros(1, np.int64), rows, 1, 1)
        frames.give_up(frame_id)
    assert not frames.open
    assert [frames[frame_id] is None for frame_id in (904, 905, 5000, 5001)] == [True, False, False, True]
    assert [frames.is_too_old(frame_id) for frame_id in (0, 1, 904, 905, 5001)] == [False, True, True, False, False]
    frames.end(5000)
    assert frames[5000] is None
    assert not frames.is_too_old(5000)
