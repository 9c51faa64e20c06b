"""Frames over TCP come whole and in order, however they are cut, and strangers come nowhere."""

import random
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from expertfleet.proto.errors import Code, FleetError
from expertfleet.proto.frame_prefix import Buffer
from expertfleet.transport import tcp_lane
from expertfleet.transport.io_thread import IoThread
from expertfleet.transport.reactor import Reactor
from expertfleet.transport.tcp_lane import TcpServer, TcpSocket, Ticket

SECRET = "0123456789abcdef" * 2
LIMIT = 4 << 20
SIZES = (0, 1, 100, 30_000, 70_000, 256 << 10, (256 << 10) - 8, LIMIT)
ENOUGH = FleetError(Code.LANE_LOST, "enough")


def framed(frame: bytes) -> bytes:
    return struct.pack("<Q", len(frame)) + frame


def is_over(connected: socket.socket) -> bool:
    """Whether nothing but the end comes."""
    try:
        return connected.recv(1) == b""
    except ConnectionResetError:
        return True


class Echo:
    """Sends back every frame of a connection that has shown ``SECRET``; ``ended`` are the reasons of those that ended."""

    def __init__(self) -> None:
        self.reactor, self.io = Reactor(), IoThread("test-io")
        self.ended: list[FleetError] = []
        self.connections: list[TcpSocket] = []
        self.answer: Callable[[TcpSocket, Buffer], None] = lambda connection, frame: connection.send((frame,))
        self.server = TcpServer(self.reactor, self.io, "127.0.0.1", 0, self._take, lambda: None)

    def _take(self, secret: str, connection: TcpSocket) -> bool:
        if secret != SECRET:
            return False
        connection.limit = LIMIT
        connection.on_frame = lambda frame: self.answer(connection, frame)
        connection.on_end = self.ended.append
        self.connections.append(connection)
        return True

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.server.port), timeout=20)

    def run(self, condition: Callable[[], bool]) -> None:
        """Steps until it is so, which other threads may bring about."""
        ends_at = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < ends_at
            self.reactor.step(0.02)

    def close(self) -> None:
        self.server.close()
        for connection in self.connections:
            connection.end(ENOUGH)
        self.reactor.close()
        self.io.stop()


@pytest.fixture
def echo() -> Iterator[Echo]:
    echo = Echo()
    yield echo
    echo.close()


@pytest.mark.parametrize("watched_by", ["reactor", "io"])
def test_frames_of_all_sizes_come_back_whole_and_in_order_however_many_wait(echo: Echo, watched_by: str) -> None:
    received: list[bytes] = []
    ended = threading.Event()
    watcher = echo.reactor if watched_by == "reactor" else echo.io
    client = TcpSocket(
        echo.connect(), watcher, echo.io, LIMIT, lambda frame: received.append(bytes(frame)), lambda error: ended.set()
    )
    client.send((SECRET.encode(),))
    frames = [random.randbytes(random.choice(SIZES)) for _ in range(60)]
    for frame in frames:
        cuts = sorted(random.randrange(len(frame) + 1) for _ in range(random.randrange(70)))
        client.send([frame[a:b] for a, b in zip([0, *cuts], [*cuts, len(frame)], strict=True)])
    echo.run(lambda: len(received) == len(frames))
    assert received == frames
    watcher.post(client.end, ENOUGH)
    echo.run(lambda: len(echo.ended) == 1 and ended.is_set())
    assert "closed by the peer" in str(echo.ended[0])


def test_a_frame_may_come_byte_by_byte(echo: Echo) -> None:
    received: list[bytes] = []
    echo.answer = lambda connection, frame: received.append(bytes(frame))
    frames = [b"", b"a", random.randbytes(300), b"end"]
    with echo.connect() as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in b"".join(framed(frame) for frame in (SECRET.encode(), *frames)):
            client.send(bytes((byte,)))
            echo.reactor.step(0.0005)
        echo.run(lambda: len(received) == len(frames))
    assert received == frames


def test_parts_that_the_kernel_did_not_take_are_sent_later_in_any_pieces(echo: Echo) -> None:
    """Nobody reads until all has been given to be sent, from two threads at once."""
    frames = [random.randbytes(1 << 20) for _ in range(24)]

    def flood(connection: TcpSocket, frame: Buffer) -> None:
        halves = [
            threading.Thread(target=lambda part=part: [connection.send((each,)) for each in part])
            for part in (frames[:12], frames[12:])
        ]
        for half in halves:
            half.start()
        for half in halves:
            half.join()

    echo.answer = flood
    with echo.connect() as client:
        client.sendall(framed(SECRET.encode()) + framed(b"go"))
        echo.run(lambda: bool(echo.connections) and bool(echo.connections[0]._waiting))
        stream = client.makefile("rb")
        came = [stream.read(*struct.unpack("<Q", stream.read(8))) for _ in frames]
    assert [frame for frame in came if frame in frames[:12]] == frames[:12]
    assert [frame for frame in came if frame in frames[12:]] == frames[12:]
    echo.run(lambda: not echo.connections[0]._waiting_bytes)
    assert not echo.connections[0]._waiting


@pytest.mark.parametrize("size", [LIMIT + 1, 1 << 40, (1 << 64) - 1])
def test_a_frame_beyond_the_limit_ends_the_connection_before_memory_is_taken(echo: Echo, size: int) -> None:
    with echo.connect() as client:
        client.sendall(framed(SECRET.encode()) + struct.pack("<Q", size))
        echo.run(lambda: bool(echo.ended))
        assert is_over(client)
    assert echo.ended[0].code is Code.FRAME_TOO_LARGE
    assert str(echo.ended[0]) == f"frame of {size} bytes; the limit is {LIMIT}"


def test_an_error_of_the_receiver_ends_the_connection_with_it_and_nothing_more_is_read(echo: Echo) -> None:
    def refuse(connection: TcpSocket, frame: Buffer) -> None:
        raise FleetError(Code.BAD_FRAME, f"not {bytes(frame)!r}")

    echo.answer = refuse
    with echo.connect() as client:
        client.sendall(framed(SECRET.encode()) + framed(b"one") + framed(b"two"))
        echo.run(lambda: bool(echo.ended))
        assert is_over(client)
    assert [str(reason) for reason in echo.ended] == ["not b'one'"]


def test_an_end_that_never_reads_is_given_up(echo: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp_lane, "_MAX_WAITING_BYTES", 32 << 20)

    def flood(connection: TcpSocket, frame: Buffer) -> None:
        for _ in range(60):
            connection.send((bytes(1 << 20),))

    echo.answer = flood
    with echo.connect() as client:
        client.sendall(framed(SECRET.encode()) + framed(b"go"))
        echo.run(lambda: bool(echo.ended))
    assert f"the other end left {32 << 20} bytes unread" in str(echo.ended[0])
    assert not echo.connections[0]._waiting


@pytest.mark.parametrize(
    "said",
    [framed(b"0" * 32), framed(b"short"), framed(bytes(32)), framed(bytes(33)), b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 8],
)
def test_a_stranger_is_turned_away_without_an_answer(echo: Echo, said: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with echo.connect() as stranger:
        stranger.sendall(said)
        echo.run(lambda: "turned away" in caplog.text)
        assert is_over(stranger)
    assert not echo.connections
    assert not echo.server._strangers


def test_who_says_nothing_is_turned_away_in_time(
    echo: Echo, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tcp_lane, "_GREETING_S", 0.2)
    with echo.connect() as stranger:
        stranger.sendall(struct.pack("<Q", 32) + b"half")
        echo.run(lambda: "no ticket came in 0.2 s" in caplog.text)
        assert is_over(stranger)


def test_more_strangers_than_some_are_not_listened_to(echo: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp_lane, "_MAX_STRANGERS", 2)
    held = [echo.connect() for _ in range(2)]
    echo.run(lambda: len(echo.server._strangers) == 2)
    with echo.connect() as third:
        echo.run(lambda: third in select.select([third], [], [], 0)[0])
        assert is_over(third)
    held[0].sendall(framed(SECRET.encode()))
    echo.run(lambda: len(echo.connections) == 1)
    with echo.connect() as fourth:
        fourth.sendall(framed(SECRET.encode()) + framed(b"hello"))
        echo.run(lambda: fourth in select.select([fourth], [], [], 0)[0])
        assert fourth.recv(100) == framed(b"hello")
    for each in held:
        each.close()


def test_frames_for_an_end_that_is_gone_are_dropped(echo: Echo) -> None:
    with echo.connect() as client:
        client.sendall(framed(SECRET.encode()))
        echo.run(lambda: bool(echo.connections))
    echo.run(lambda: bool(echo.ended))
    echo.connections[0].send((b"late",))
    echo.connections[0].end(ENOUGH)
    assert len(echo.ended) == 1


def test_a_closed_server_leaves_nothing_open(echo: Echo) -> None:
    with echo.connect() as stranger:
        echo.run(lambda: bool(echo.server._strangers))
        echo.server.close()
        assert is_over(stranger)
    ends_at = time.monotonic() + 5
    while time.monotonic() < ends_at:
        try:
            echo.connect().close()
        except ConnectionRefusedError:
            return
    pytest.fail("the port still answers")


def test_a_ticket_is_read_as_it_is_written() -> None:
    ticket = Ticket.draw(41000)
    assert Ticket.parse(str(ticket)) == ticket
    assert ticket.secret != Ticket.draw(41000).secret


@pytest.mark.parametrize(
    "text", ["", "x", ":", f":{SECRET}", f"0:{SECRET}", f"65536:{SECRET}", f"-1:{SECRET}", f"²:{SECRET}", "80:short"]
)
def test_what_is_no_ticket_is_refused(text: str) -> None:
    with pytest.raises(FleetError, match="not a port and a ticket") as caught:
        Ticket.parse(text)
    assert caught.value.code is Code.BAD_FRAME
