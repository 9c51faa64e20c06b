"""Frames over a local socket come whole and in order, and nobody else's process has a part in it."""

import os
import random
import socket
from collections.abc import Callable, Iterator

import pytest

from expertfleet.proto.codec import Error, decode
from expertfleet.proto.errors import Code, FleetError
from expertfleet.transport import local_lane
from expertfleet.transport.local_lane import MAX_MESSAGE_BYTES, FrameSocket, LocalServer, connect_locally
from expertfleet.transport.reactor import Reactor

PORT = random.randrange(1 << 20, 1 << 30)  # no port at all, so nobody has it
ADDRESS = f"127.0.0.1:{PORT}"
ENOUGH = FleetError(Code.LANE_LOST, "enough")


class Echo:
    """Sends every frame back; ``ended`` are the reasons of connections that ended."""

    def __init__(self) -> None:
        self.reactor = Reactor()
        self.ended: list[FleetError] = []
        self.connections: list[FrameSocket] = []
        self.answer: Callable[[FrameSocket, bytes], None] = lambda connection, frame: connection.send(frame)
        self.server = LocalServer(self.reactor, PORT, self._connect)

    def _connect(self, connected: socket.socket) -> None:
        connection = FrameSocket(
            self.reactor, connected, lambda frame: self.answer(connection, frame), self.ended.append
        )
        self.connections.append(connection)

    def close(self) -> None:
        self.server.close()
        for connection in self.connections:
            connection.end(ENOUGH)
        self.reactor.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    echo = Echo()
    yield echo
    echo.close()


def raw() -> socket.socket:
    stranger = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        stranger.connect(f"\0expertfleet-{os.getuid()}-lane-{PORT}")
    except OSError:
        stranger.close()
        raise
    return stranger


def test_frames_come_back_whole_and_in_order_however_many_wait(echo: Echo) -> None:
    received: list[bytes] = []
    connected = connect_locally(ADDRESS)
    assert connected is not None
    client = FrameSocket(echo.reactor, connected, received.append, lambda error: None)
    frames = [random.randbytes(random.choice((1, 100, MAX_MESSAGE_BYTES))) for _ in range(200)]
    for frame in frames:
        client.send(frame)  # more than the socket takes at once
    assert echo.reactor.run(lambda: len(received) == len(frames), 30)
    assert received == frames
    client.end(ENOUGH)
    assert echo.reactor.run(lambda: len(echo.ended) == 1, 5)


def test_a_file_may_come_with_the_first_frame(echo: Echo) -> None:
    file = os.memfd_create("given")
    os.write(file, b"hello")
    with raw() as client:
        socket.send_fds(client, [b"first"], [file])
        client.send(b"second")
        assert echo.reactor.run(lambda: bool(echo.connections) and echo.connections[0].received_file >= 0, 5)
        echo.reactor.step(0)
        assert os.pread(echo.connections[0].received_file, 5, 0) == b"hello"
        assert [client.recv(100), client.recv(100)] == [b"first", b"second"]
    os.close(file)


def test_a_frame_too_large_is_refused_by_type_and_what_follows_is_not_looked_at(echo: Echo) -> None:
    with raw() as client:
        client.send(bytes(MAX_MESSAGE_BYTES + 1))
        client.send(b"more")
        echo.reactor.run(lambda: bool(echo.ended), 5)
        refusal = decode(client.recv(1 << 16), 1 << 16)
        assert isinstance(refusal, Error)
        assert (refusal.frame_id, refusal.code) == (0, Code.FRAME_TOO_LARGE)
        assert client.recv(100) == b""
    assert len(echo.ended) == 1


def test_an_error_of_the_receiver_ends_the_connection_with_it(echo: Echo) -> None:
    def refuse(connection: FrameSocket, frame: bytes) -> None:
        raise FleetError(Code.BAD_FRAME, "not this one")

    echo.answer = refuse
    with raw() as client:
        client.send(b"no")
        assert echo.reactor.run(lambda: bool(echo.ended), 5)
        assert client.recv(100) == b""
    assert [str(reason) for reason in echo.ended] == ["not this one"]


def test_an_end_that_never_reads_is_given_up(echo: Echo) -> None:
    def flood(connection: FrameSocket, frame: bytes) -> None:
        for _ in range(20000):
            connection.send(frame)

    echo.answer = flood
    with raw() as client:
        client.send(bytes(1000))
        assert echo.reactor.run(lambda: bool(echo.ended), 10)
    assert "frames unread" in str(echo.ended[0])


def test_another_users_process_is_left_alone(echo: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_lane, "_peer_uid", lambda connected: os.getuid() + 1)
    assert connect_locally(ADDRESS) is None
    with raw() as stranger:
        echo.reactor.step(5)
        echo.reactor.step(0)
        assert stranger.recv(1) == b""
    assert not echo.connections


def test_a_name_is_taken_once_and_gone_with_its_process(echo: Echo) -> None:
    with pytest.raises(OSError, match="in use"):
        LocalServer(echo.reactor, PORT, lambda connected: None)
    echo.server.close()
    with pytest.raises(ConnectionRefusedError):
        raw()


@pytest.mark.usefixtures("echo")
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "192.0.2.1", "some.other.host"])
def test_only_processes_of_this_machine_are_asked(host: str) -> None:
    """192.0.2.1 is reserved for documentation, so it is nobody's."""
    found = connect_locally(f"{host}:{PORT}")
    assert (found is not None) == (host in ("127.0.0.1", "localhost"))
    if found is not None:
        found.close()
    assert connect_locally(f"{host}:{PORT + 1}") is None
