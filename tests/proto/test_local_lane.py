import asyncio
import os
import random
import socket
import struct
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import uvloop

from expertfleet.proto.codec import Error, decode
from expertfleet.proto.errors import Code, FleetError
from expertfleet.proto.local_lane import FrameSocket, forget_locally, listen_locally, local_path

LIMIT = 1 << 16
PORT = 7
ADDRESS = f"127.0.0.1:{PORT}"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"expertfleet-{os.getuid()}"


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


def with_echo(conversation: Callable[[Echo, Path], Awaitable[None]]) -> None:
    async def run() -> None:
        echo = Echo()
        server = await echo.start()
        path = local_path(ADDRESS)
        assert path is not None
        try:
            await asyncio.wait_for(conversation(echo, path), 30)
        finally:
            server.close()

    uvloop.run(run())


async def raw(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_unix_connection(path)


async def read_frame(reader: asyncio.StreamReader) -> bytes:
    (length,) = struct.unpack("<I", await reader.readexactly(4))
    return await reader.readexactly(length)


def test_frames_come_back_whole_and_in_order() -> None:
    async def conversation(echo: Echo, path: Path) -> None:
        received: asyncio.Queue[bytearray] = asyncio.Queue()
        client = FrameSocket(LIMIT, received.put_nowait, lambda error: None)
        await asyncio.get_running_loop().create_unix_connection(lambda: client, str(path))
        frames = [random.randbytes(random.choice((1, 100, 65536))) for _ in range(200)]
        for frame in frames:
            client.send(frame)
        assert [bytes(await received.get()) for _ in frames] == frames
        client.end(FleetError(Code.LANE_LOST, "enough"))

    with_echo(conversation)


def test_a_frame_may_come_byte_by_byte() -> None:
    async def conversation(echo: Echo, path: Path) -> None:
        reader, writer = await raw(path)
        frame = random.randbytes(50)
        for byte in struct.pack("<I", 50) + frame:
            writer.write(bytes([byte]))
            await asyncio.sleep(0.001)
        assert await read_frame(reader) == frame
        writer.close()

    with_echo(conversation)


@pytest.mark.parametrize("length", [0, LIMIT + (1 << 20) + 1, 0xFFFFFFFF])
def test_an_impossible_length_is_refused_by_type(length: int) -> None:
    async def conversation(echo: Echo, path: Path) -> None:
        reader, writer = await raw(path)
        writer.write(struct.pack("<I", length) + b"more")
        refusal = decode(await read_frame(reader), LIMIT)
        assert isinstance(refusal, Error)
        assert (refusal.frame_id, refusal.code) == (0, Code.FRAME_TOO_LARGE)
        assert await reader.read() == b""
        assert [error.code for error in echo.ended] == [Code.FRAME_TOO_LARGE]
        writer.close()

    with_echo(conversation)


def test_noise_ends_its_own_connection_alone() -> None:
    async def conversation(echo: Echo, path: Path) -> None:
        for _ in range(100):
            with socket.socket(socket.AF_UNIX) as stranger:
                stranger.connect(str(path))
                stranger.send(random.randbytes(random.randint(0, 40)))
        reader, writer = await raw(path)
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
        reader, writer = await raw(local_path(ADDRESS) or Path())
        writer.write(struct.pack("<I", 2) + b"no")
        assert await reader.read() == b""
        writer.close()
        server.close()

    uvloop.run(run())
    assert [str(reason) for reason in reasons] == ["not this one"]


def test_only_this_users_own_folder_is_used(folder: Path) -> None:
    folder.mkdir(mode=0o755)
    (folder / f"lane-{PORT}.sock").touch()
    assert local_path(ADDRESS) is None
    assert uvloop.run(listen_locally(PORT, Echo()._connect)) is None


def test_the_socket_belongs_to_an_address_of_this_machine(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    (folder / f"lane-{PORT}.sock").touch()
    assert local_path(ADDRESS) is not None
    assert local_path(f"localhost:{PORT}") is not None
    assert local_path("127.0.0.1:8") is None
    assert local_path(f"192.0.2.1:{PORT}") is None  # reserved for documentation, nobody's
    assert local_path(f"some.other.host:{PORT}") is None
    forget_locally(PORT)
    assert local_path(ADDRESS) is None
