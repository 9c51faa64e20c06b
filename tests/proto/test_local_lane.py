import asyncio
import os
import random
import socket
import struct
from collections.abc import Awaitable, Callable

import pytest
import uvloop

from expertfleet.proto import local_lane
from expertfleet.proto.codec import Error, decode
from expertfleet.proto.errors import Code, FleetError
from expertfleet.proto.local_lane import FrameSocket, connect_locally, listen_locally

LIMIT = 1 << 16
PORT = random.randrange(1 << 20, 1 << 30)  # no port at all, so nobody has it
ADDRESS = f"127.0.0.1:{PORT}"


class Echo:
    """Sends every frame back; ``ended`` are the reasons of connections that ended."""

    def __init__(self) -> None:
        self.ended: list[FleetError] = []

    async def start(self) -> asyncio.AbstractServer:
        server = await listen_locally(PORT, self._connect)
        assert server is not None
        return server

    def _connect(self) -> FrameSocket:
        connection = FrameSocket(LIMIT, lambda frame: connection.send(bytes(frame)), self.ended.append)
        return connection


def with_echo(conversation: Callable[[Echo], Awaitable[None]]) -> None:
    async def run() -> None:
        echo = Echo()
        server = await echo.start()
        try:
            await asyncio.wait_for(conversation(echo), 30)
        finally:
            server.close()

    uvloop.run(run())


def connect() -> socket.socket:
    stranger = socket.socket(socket.AF_UNIX)
    try:
        stranger.connect(f"\0expertfleet-{os.getuid()}-lane-{PORT}")
    except OSError:
        stranger.close()
        raise
    return stranger


async def raw() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_unix_connection(sock=connect())


async def read_frame(reader: asyncio.StreamReader) -> bytes:
    (length,) = struct.unpack("<I", await reader.readexactly(4))
    return await reader.readexactly(length)


def test_frames_come_back_whole_and_in_order() -> None:
    async def conversation(echo: Echo) -> None:
        received: asyncio.Queue[bytearray] = asyncio.Queue()
        client = await connect_locally(ADDRESS, lambda: FrameSocket(LIMIT, received.put_nowait, lambda error: None))
        assert client is not None
        frames = [random.randbytes(random.choice((1, 100, 65536))) for _ in range(200)]
        for frame in frames:
            client.send(frame)
        assert [bytes(await received.get()) for _ in frames] == frames
        client.end(FleetError(Code.LANE_LOST, "enough"))

    with_echo(conversation)


def test_a_frame_may_come_byte_by_byte() -> None:
    async def conversation(echo: Echo) -> None:
        reader, writer = await raw()
        frame = random.randbytes(50)
        for byte in struct.pack("<I", 50) + frame:
            writer.write(bytes([byte]))
            await asyncio.sleep(0.001)
        assert await read_frame(reader) == frame
        writer.close()

    with_echo(conversation)


@pytest.mark.parametrize("length", [0, LIMIT + (1 << 20) + 1, 0xFFFFFFFF])
def test_an_impossible_length_is_refused_by_type(length: int) -> None:
    async def conversation(echo: Echo) -> None:
        reader, writer = await raw()
        writer.write(struct.pack("<I", length) + b"more")
        refusal = decode(await read_frame(reader), LIMIT)
        assert isinstance(refusal, Error)
        assert (refusal.frame_id, refusal.code) == (0, Code.FRAME_TOO_LARGE)
        assert await reader.read() == b""
        assert [error.code for error in echo.ended] == [Code.FRAME_TOO_LARGE]
        writer.close()

    with_echo(conversation)


def test_noise_ends_its_own_connection_alone() -> None:
    async def conversation(echo: Echo) -> None:
        for _ in range(100):
            with connect() as stranger:
                stranger.send(random.randbytes(random.randint(0, 40)))
        reader, writer = await raw()
        writer.write(struct.pack("<I", 2) + b"ok")
        assert await read_frame(reader) == b"ok"
        writer.close()

    with_echo(conversation)


def test_an_error_of_the_receiver_ends_the_connection_with_it() -> None:
    reasons: list[FleetError] = []

    def refuse(frame: bytearray) -> None:
        raise FleetError(Code.BAD_FRAME, "not this one")

    async def run() -> None:
        server = await listen_locally(PORT, lambda: FrameSocket(LIMIT, refuse, reasons.append))
        assert server is not None
        reader, writer = await raw()
        writer.write(struct.pack("<I", 2) + b"no")
        assert await reader.read() == b""
        writer.close()
        server.close()

    uvloop.run(run())
    assert [str(reason) for reason in reasons] == ["not this one"]


def test_another_users_process_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def conversation(echo: Echo) -> None:
        monkeypatch.setattr(local_lane, "_peer_uid", lambda connected: os.getuid() + 1)
        assert await connect_locally(ADDRESS, lambda: pytest.fail("connected")) is None
        with connect() as stranger:
            assert await asyncio.to_thread(stranger.recv, 1) == b""
        assert [error.code for error in echo.ended][-1] is Code.UNAUTHENTICATED

    with_echo(conversation)


def test_a_name_is_taken_once_and_gone_with_its_process() -> None:
    async def conversation(echo: Echo) -> None:
        assert await listen_locally(PORT, echo._connect) is None

    with_echo(conversation)
    with pytest.raises(ConnectionRefusedError):
        connect()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "192.0.2.1", "some.other.host"])
def test_only_processes_of_this_machine_are_asked(host: str) -> None:
    """192.0.2.1 is reserved for documentation, so it is nobody's."""

    async def conversation(echo: Echo) -> None:
        made = FrameSocket(LIMIT, lambda frame: None, lambda error: None)
        found = await connect_locally(f"{host}:{PORT}", lambda: made)
        assert (found is made) == (host in ("127.0.0.1", "localhost"))
        made.end(FleetError(Code.LANE_LOST, "enough"))
        assert await connect_locally(f"{host}:{PORT + 1}", lambda: made) is None

    with_echo(conversation)
