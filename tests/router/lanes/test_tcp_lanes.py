"""Frames over TCP beside a lane's stream: which way each goes, who is let in, and what becomes of a lane when a connection breaks."""

import contextlib
import importlib.util
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
import trustme

from expertfleet.expert_workers.config import ExpertConfig
from expertfleet.expert_workers.handler import GrpcLaneServer
from expertfleet.expert_workers.server import ExpertServer
from expertfleet.membership import security
from expertfleet.membership.security import WireSecurity
from expertfleet.proto.errors import Code
from expertfleet.proto.frame_prefix import Kind
from expertfleet.router.lanes import tcp_side_channel
from expertfleet.transport.io_thread import IoThread

_spec = importlib.util.spec_from_file_location("test_local_lanes", Path(__file__).with_name("test_local_lanes.py"))
assert _spec is not None
assert _spec.loader is not None
lanes: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(lanes)
End, drawn, LAYER = lanes.End, lanes.drawn, lanes.LAYER
CLOSED = "the lane's connection broke"


@pytest.fixture
def io() -> Iterator[IoThread]:
    io = IoThread("test-io")
    yield io
    io.stop()


def started(config: ExpertConfig) -> ExpertServer:
    server = ExpertServer(config)
    server.start()
    while server.registration.state != "ready":
        time.sleep(0.02)
    return server


@pytest.fixture
def server(small_checkpoint: Path) -> Iterator[ExpertServer]:
    server = started(ExpertConfig(small_checkpoint))
    yield server
    server.stop(5)


@pytest.fixture
def over_stream(monkeypatch: pytest.MonkeyPatch) -> list[Kind]:
    """The kinds of frames that shards got over gRPC."""
    seen: list[Kind] = []
    real = GrpcLaneServer.receive

    def receive(lane: GrpcLaneServer, data: bytes) -> Any:
        seen.append(Kind(data[5]))
        return real(lane, data)

    monkeypatch.setattr(GrpcLaneServer, "receive", receive)
    return seen


def test_dispatches_and_cancels_leave_the_stream_alone(
    io: IoThread, server: ExpertServer, over_stream: list[Kind]
) -> None:
    with closing(End(io, server, "tcp")) as end:
        beside = end.connection._tcp
        small, large = beside._small, beside._large
        for tokens, way in ((1, small), (4000, large)):
            x, ids = drawn(server.checkpoint, tokens)
            dispatch = end.dispatch(x, ids)
            assert set(beside._carried_by.values()) == {way}
            dispatch.close()
            assert not beside._carried_by
            assert torch.isfinite(end.ask(x, ids)).all()
    assert over_stream == [Kind.HELLO]


def test_a_cancelled_dispatch_is_taken_from_the_shards_queue(
    io: IoThread, server: ExpertServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []
    go = threading.Event()
    layer = server.store.layers[LAYER]
    real = layer.apply_at

    def slow(x: int, num_rows: int, *more: int) -> None:
        computed.append(num_rows)
        go.wait(20)
        real(x, num_rows, *more)

    monkeypatch.setattr(layer, "apply_at", slow)
    with closing(End(io, server, "tcp")) as end:
        first = end.dispatch(*drawn(server.checkpoint, 1))
        assert eventually(lambda: computed == [1])
        end.dispatch(*drawn(server.checkpoint, 2)).close()
        go.set()
        assert end.reactor.run(lambda: first.done, 20)
        first.close()
        x, ids = drawn(server.checkpoint, 3)
        end.ask(x, ids)
        assert computed == [1, 3]


def test_without_the_port_frames_take_the_stream_and_the_log_says_so(
    io: IoThread,
    server: ExpertServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    over_stream: list[Kind],
) -> None:
    async def refuse(host: str, port: int) -> socket.socket:
        raise ConnectionRefusedError("no way")

    monkeypatch.setattr(tcp_side_channel, "_connect", refuse)
    with closing(End(io, server, "grpc")) as end:
        x, ids = drawn(server.checkpoint, 5)
        wanted = end.ask(x, ids)
    del over_stream[:]
    with closing(End(io, server, "tcp", beside=False)) as end:
        assert eventually(lambda: "frames take gRPC: no way" in caplog.text)
        assert torch.equal(end.ask(x, ids), wanted)
    assert over_stream == [Kind.HELLO, Kind.DISPATCH]


def test_a_shard_that_lets_nobody_in_is_asked_over_the_stream_and_the_lane_stays_up(
    io: IoThread,
    server: ExpertServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    over_stream: list[Kind],
) -> None:
    """As when strangers take all its places."""
    assert server._tcp is not None
    monkeypatch.setattr(server._tcp, "_on_ticket", lambda secret, connection: False)
    with closing(End(io, server, "tcp", beside=False)) as end:
        ends_at = time.monotonic() + 10
        while caplog.text.count("lets nobody in over TCP, frames take gRPC") < 2:
            assert time.monotonic() < ends_at
            end.reactor.step(0.02)
        end.ask(*drawn(server.checkpoint, 2))
        assert end.lane.last_error is None
    assert over_stream == [Kind.HELLO, Kind.DISPATCH]


def test_a_shard_that_offers_none_is_asked_over_the_stream(
    io: IoThread, small_checkpoint: Path, over_stream: list[Kind]
) -> None:
    server = started(ExpertConfig(small_checkpoint, tcp_lanes=False))
    with closing(End(io, server, "tcp", beside=False)) as end:
        end.ask(*drawn(server.checkpoint, 2))
        assert not end.connection._tcp.is_usable
    server.stop(5)
    assert over_stream == [Kind.HELLO, Kind.DISPATCH]


@pytest.mark.parametrize("which", ["_small", "_large"])
@pytest.mark.parametrize("by", ["shard", "worker"])
def test_a_connection_that_breaks_ends_its_lane_which_comes_back_whole(
    io: IoThread, server: ExpertServer, which: str, by: str
) -> None:
    with closing(End(io, server, "tcp")) as end:
        way = getattr(end.connection._tcp, which).socket
        if by == "worker":
            way._socket.shutdown(socket.SHUT_RDWR)
        else:
            port = way._socket.getsockname()[1]
            (mine,) = [lane for lane in server.lanes.tcp_lanes if lane._connection._socket.getpeername()[1] == port]
            server.reactor.post(mine.close)
        assert end.reactor.run(lambda: end.lane.last_error is not None, 20)
        assert CLOSED in str(end.lane.last_error)
        assert end.reactor.run(lambda: end.lane.up and end.lane._connection._tcp.is_usable, 20)
        end.ask(*drawn(server.checkpoint, 2))
        assert eventually(lambda: len(server.lanes.tcp_lanes) == 2)


def test_what_waits_for_an_answer_is_asked_again_over_the_next_connection(
    io: IoThread, server: ExpertServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = server.store.layers[LAYER]
    real = layer.apply_at

    def slow(*call: int) -> None:
        time.sleep(0.3)
        real(*call)

    monkeypatch.setattr(layer, "apply_at", slow)
    with closing(End(io, server, "tcp")) as end:
        x, ids = drawn(server.checkpoint, 2)
        wanted = end.ask(x, ids)
        with closing(end.dispatch(x, ids)) as dispatch:
            end.connection._tcp._small.socket._socket.shutdown(socket.SHUT_RDWR)
            assert end.reactor.run(lambda: dispatch.done, 20)
            assert end.router.counters.retried_frames == 1
            assert torch.equal(dispatch.combined(), wanted)


def test_connections_end_with_their_lane(io: IoThread, server: ExpertServer) -> None:
    with closing(End(io, server, "tcp")):
        assert len(server.lanes.tcp_lanes) == 2
        assert len(server.lanes._tickets) == 1
    assert eventually(lambda: not server.lanes.tcp_lanes and not server.lanes._tickets)


def test_a_refusal_comes_back_the_same_way(io: IoThread, server: ExpertServer, over_stream: list[Kind]) -> None:
    with closing(End(io, server, "tcp")) as end:
        server.store._mask[:] = False
        with closing(end.dispatch(*drawn(server.checkpoint, 2))) as dispatch:
            assert end.reactor.run(lambda: bool(dispatch._refusal), 20)
            assert dispatch._refusal.startswith(Code.NOT_HELD.name)
    assert over_stream == [Kind.HELLO]


def test_over_tls_the_bits_are_the_same_and_a_stranger_gets_no_connection(
    io: IoThread, small_checkpoint: Path, tmp_path: Path, certify: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    authority = trustme.CA()
    ours = certify(tmp_path / "ours", authority)
    try:
        server = started(ExpertConfig(small_checkpoint, tls_dir=ours))
        with closing(End(io, server, "tcp")) as end, closing(End(io, server, "grpc")) as other:
            for tokens in (1, 33, 4000):
                x, ids = drawn(server.checkpoint, tokens)
                assert torch.equal(end.ask(x, ids), other.ask(x, ids))
            with socket.create_connection(("127.0.0.1", server.lanes.tcp_port)) as connected:
                connected.sendall(bytes(64))
                with contextlib.suppress(ConnectionResetError):
                    assert connected.recv(100)[:1] in (b"", b"\x15")  # the end, or first TLS's alert
            theirs = certify(tmp_path / "theirs", trustme.CA())
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.load_verify_locations(ours / "ca.crt")  # they know the fleet, which does not know them
            context.load_cert_chain(theirs / "tls.crt", theirs / "tls.key")
            connected = socket.create_connection(("127.0.0.1", server.lanes.tcp_port), timeout=10)
            stranger = context.wrap_socket(connected, server_hostname="expertfleet")
            with closing(stranger), pytest.raises((ssl.SSLError, ConnectionResetError)):
                stranger.recv(1)
            assert eventually(lambda: caplog.text.count("a connection to the lanes' port was turned away") == 2)
            end.ask(x, ids)
        server.stop(5)
    finally:
        security.secure(WireSecurity())


def eventually(condition: Callable[[], bool]) -> bool:
    ends_at = time.monotonic() + 10
    while not condition() and time.monotonic() < ends_at:
        time.sleep(0.01)
    return condition()
