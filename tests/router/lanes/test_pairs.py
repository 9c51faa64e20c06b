"""Dispatches to a real shard whose large rows go by gloo: the bits of gRPC, and no row lost or used twice when a pair ends."""

import dataclasses
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from gloo import over_gloo  # noqa: F401 - a fixture for all of this module

from expertfleet.checkpoint.tensors import Checkpoint
from expertfleet.expert_workers.config import ExpertConfig
from expertfleet.expert_workers.handler import GrpcLaneServer
from expertfleet.expert_workers.server import ExpertServer
from expertfleet.membership.epoch import Epoch, EpochId, Member
from expertfleet.proto.codec import Hello, encode_error
from expertfleet.proto.errors import Code, FleetError
from expertfleet.proto.frame_prefix import OLDEST_WIRE_VERSION, PAIRS_SINCE, WIRE_VERSION, Kind
from expertfleet.proto.group_frames import AckPg, encode_ack_pg
from expertfleet.router.dispatch.layer_dispatch import LayerDispatch
from expertfleet.router.lanes.grpc_connection import GrpcConnection
from expertfleet.router.router import Router
from expertfleet.transport.io_thread import IoThread
from expertfleet.transport.pair import Pair
from expertfleet.transport.pair_group import PairSettings
from expertfleet.transport.reactor import Reactor

LAYER = 1
LEAST_BYTES = 8 << 10
BOTH = (OLDEST_WIRE_VERSION, WIRE_VERSION)


class End:
    """A router whose lane goes over gRPC, with a pair beside it if ``transport`` names one."""

    def __init__(
        self, io: IoThread, server: ExpertServer, transport: Any = "nccl", versions: tuple[int, int] = BOTH
    ) -> None:
        self.reactor = Reactor()
        hello = Hello("attention-0", server.checkpoint.fingerprint, "bfloat16", 1 << 24, *versions, pair=transport)
        pair = PairSettings(transport, LEAST_BYTES)
        self.router = Router(io, self.reactor, hello, 30.0, local_lanes=False, pair=pair)
        member = Member("expert-0", server.address, server.numerics, server.store.held)
        self.router.set_epoch(Epoch(EpochId(1, 1), server.checkpoint.fingerprint, "bfloat16", (member,), (), True))
        assert self.reactor.run(lambda: self.router.usable, 20)
        ((self.lane),) = self.router._lanes.values()
        assert isinstance(self.lane._connection, GrpcConnection)
        self.connection = self.lane._connection

    @property
    def pair(self) -> Pair:
        assert self.connection._pairs is not None
        return self.connection._pairs.pair

    def wait_for(self, generation: int) -> None:
        assert self.reactor.run(lambda: self.pair.generation == generation and self.pair.usable, 30)

    def dispatch(self, x: torch.Tensor, ids: torch.Tensor) -> LayerDispatch:
        return self.router.dispatch(LAYER, x, ids, torch.ones(ids.shape))

    def ask(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return self.outcome(self.dispatch(x, ids))

    def outcome(self, dispatch: LayerDispatch) -> torch.Tensor:
        with closing(dispatch):
            assert self.reactor.run(lambda: dispatch.done, 40)
            if dispatch.error is not None:
                raise dispatch.error
            return dispatch.combined()

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
    server = ExpertServer(ExpertConfig(small_checkpoint, pair_transport="nccl", pair_min_kib=LEAST_BYTES >> 10))
    server.start()
    while server.registration.state != "ready":
        time.sleep(0.02)
    yield server
    server.stop(5)


@pytest.fixture
def end(io: IoThread, server: ExpertServer) -> Iterator[End]:
    end = End(io, server)
    end.wait_for(1)
    yield end
    end.close()


def drawn(checkpoint: Checkpoint, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    config = checkpoint.config
    ids = torch.stack([torch.randperm(config.num_experts)[: config.top_k] for _ in range(tokens)])
    return torch.randn(tokens, config.hidden_size).bfloat16(), ids


def test_a_pair_gives_the_bits_of_grpc_and_carries_what_is_large_enough(
    io: IoThread, server: ExpertServer, end: End
) -> None:
    with closing(End(io, server, "none")) as other:
        for tokens, rows_paired, results_paired in ((1, 0, 0), (2, 0, 1), (15, 0, 1), (16, 1, 1), (300, 1, 1)):
            sent, came = end.pair._num_offered, end.pair._num_taken
            x, ids = drawn(server.checkpoint, tokens)
            assert torch.equal(end.ask(x, ids), other.ask(x, ids))
            assert end.pair._num_offered - sent == rows_paired  # a row has 512 bytes
            assert (end.pair._num_taken > came) == results_paired
        assert other.connection._pairs is None
    assert end.pair.generation == 1
    assert end.connection._pairs is not None
    assert not end.connection._pairs._frames


def test_a_pair_that_ends_under_way_loses_nothing_and_a_next_generation_follows(server: ExpertServer, end: End) -> None:
    x, ids = drawn(server.checkpoint, 400)
    wanted = end.ask(x, ids)
    for generation in (1, 2, 3):
        dispatches = [end.dispatch(x, ids) for _ in range(3)]
        end.pair.end("test")
        for dispatch in dispatches:
            assert torch.equal(end.outcome(dispatch), wanted)
        end.wait_for(generation + 1)
        assert torch.equal(end.ask(x, ids), wanted)
    assert end.lane.up
    assert not end.router.counters.retried_frames


def test_a_shard_that_ends_the_pair_before_the_rows_came_gets_them_over_the_stream(
    server: ExpertServer, end: End, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows are never sent, so that nothing has come of what was announced."""
    x, ids = drawn(server.checkpoint, 40)
    wanted = end.ask(x, ids)
    assert end.pair._groups is not None
    monkeypatch.setattr(end.pair._groups.outgoing, "send", lambda rows, number, timeout_s: time.sleep(0.2))
    dispatch = end.dispatch(x, ids)
    end.pair.end("test")
    assert torch.equal(end.outcome(dispatch), wanted)
    end.wait_for(2)


def test_results_that_an_error_has_overtaken_are_dropped(server: ExpertServer, end: End) -> None:
    x, ids = drawn(server.checkpoint, 40)
    with closing(end.dispatch(x, ids)) as dispatch:
        (frame_id,) = end.lane._frames.open
        error = FleetError(Code.BAD_FRAME, "odd")
        end.lane.received(end.connection, encode_error(frame_id, error, end.lane.version))
        assert str(dispatch.error) == "expert-0: odd"
        assert end.reactor.run(lambda: end.pair._num_taken > 0, 20)
        end.reactor.run(lambda: False, 0.2)
    assert end.lane.up


def test_a_frame_of_a_generation_that_is_over_changes_nothing(server: ExpertServer, end: End) -> None:
    x, ids = drawn(server.checkpoint, 40)
    wanted = end.ask(x, ids)
    end.pair.end("test")
    end.wait_for(2)
    end.connection._send(encode_ack_pg(AckPg(1, 0, True), WIRE_VERSION))
    end.lane.received(end.connection, encode_ack_pg(AckPg(1, 0, True), WIRE_VERSION))
    assert torch.equal(end.ask(x, ids), wanted)
    assert end.pair.generation == 2
    assert end.pair.usable
    assert end.lane.up


def test_a_word_on_a_generation_to_come_ends_the_lane(server: ExpertServer, end: End) -> None:
    end.lane.received(end.connection, encode_ack_pg(AckPg(9, 0, False), WIRE_VERSION))
    assert end.reactor.run(lambda: not end.lane.up, 20)
    assert "misfit AckPg frame" in str(end.lane.last_error)


def test_rows_that_the_shard_refuses_are_refused_as_over_the_stream(server: ExpertServer, end: End) -> None:
    x, ids = drawn(server.checkpoint, 40)
    server.store.raise_min_epoch(EpochId(9, 9))
    with closing(end.dispatch(x, ids)) as dispatch:
        assert end.reactor.run(lambda: "STALE_EPOCH" in dispatch._refusal, 20)
    assert end.pair._num_offered


@pytest.mark.parametrize(
    ("worker", "shard"), [(BOTH, (1, PAIRS_SINCE - 1)), ((1, PAIRS_SINCE - 1), BOTH)], ids=["shard", "worker"]
)
def test_an_end_of_the_version_before_never_sees_frames_of_pairs(
    io: IoThread,
    server: ExpertServer,
    monkeypatch: pytest.MonkeyPatch,
    worker: tuple[int, int],
    shard: tuple[int, int],
) -> None:
    seen: list[bytes] = []
    real = GrpcLaneServer.receive

    def receive(lane: GrpcLaneServer, data: bytes) -> Any:
        seen.append(data)
        return real(lane, data)

    monkeypatch.setattr(GrpcLaneServer, "receive", receive)
    server.lanes.hello = dataclasses.replace(server.lanes.hello, oldest=shard[0], newest=shard[1])
    with closing(End(io, server, versions=worker)) as end:
        end.connection._lane = _Listening(end.lane, seen)  # type: ignore[assignment]
        x, ids = drawn(server.checkpoint, 300)
        assert torch.isfinite(end.ask(x, ids)).all()
        assert end.connection._pairs is None
    kinds = {Kind(data[5]) for data in seen}
    assert {Kind.HELLO, Kind.DISPATCH, Kind.RESULT} <= kinds
    assert max(kinds) <= Kind.RESULT_SHM
    assert {data[4] for data in seen if data[5] != Kind.HELLO} == {PAIRS_SINCE - 1}


def test_ends_told_of_different_transports_stay_with_grpc_and_say_so(
    io: IoThread, server: ExpertServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.lanes.hello = dataclasses.replace(server.lanes.hello, pair="none")
    with closing(End(io, server)) as end:
        x, ids = drawn(server.checkpoint, 40)
        assert torch.isfinite(end.ask(x, ids)).all()
        assert end.connection._pairs is None
    assert "expert-0 exchanges rows by none, not nccl: over gRPC" in caplog.text


class _Listening:
    """A lane that notes what the shard sends."""

    def __init__(self, lane: Any, seen: list[bytes]) -> None:
        self._lane, self._seen = lane, seen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lane, name)

    def received(self, connection: Any, data: bytes) -> None:
        self._seen.append(data)
        self._lane.received(connection, data)
