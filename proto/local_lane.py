"""Lanes between processes of one machine: frames over a Unix socket, 13 µs there and back where gRPC takes 240.

Knows nothing of what frames say, but for the ERROR that ends a connection. A shard that listens on port P also listens on
an abstract Unix socket named after P; both ends ask the kernel whether the other one is the same user. On the socket a
frame is its length (u32, little endian) and its bytes. Everything here runs on the IO loop.
"""

import asyncio
import ipaddress
import logging
import os
import socket
import struct
import sys
from collections.abc import Callable
from typing import cast

from .codec import encode_error
from .errors import Code, FleetError

_log = logging.getLogger(__name__)
_LENGTH = struct.Struct("<I")
_CREDENTIALS = struct.Struct("<iII")  # pid, uid, gid: struct ucred
# A frame a little larger than the limit still gets the codec's typed answer.
_SLACK_BYTES = 1 << 20
_LAST_WORDS_S = 0.5
_CONNECT_S = 1.0


class FrameSocket(asyncio.BufferedProtocol):
    """One end of a connection. ``on_frame`` gets every frame, ``on_end`` is called once with why it ended."""

    def __init__(
        self, max_frame_bytes: int, on_frame: Callable[[bytearray], object], on_end: Callable[[FleetError], object]
    ) -> None:
        self._limit = max_frame_bytes + _SLACK_BYTES
        self._on_frame, self._on_end = on_frame, on_end
        self._error: FleetError | None = None
        self._transport: asyncio.Transport | None = None
        self._header = bytearray(_LENGTH.size)
        self._frame: bytearray | None = None  # the frame under way, if its length is known
        self._filled = 0

    def send(self, frame: bytes) -> None:
        """Frames for an end that is gone are dropped."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.writelines((_LENGTH.pack(len(frame)), frame))

    def end(self, error: FleetError) -> None:
        """Closes the connection at once; ``error`` is what ``on_end`` hears."""
        self._error = self._error or error
        if self._transport is not None:
            self._transport.abort()

    def refuse(self, error: FleetError) -> None:
        """The same, after the other end was told why in an ERROR frame of no dispatch, and had time to read it."""
        if self._error is None:
            self._error = error
            self.send(encode_error(0, error))
            asyncio.get_running_loop().call_later(_LAST_WORDS_S, self.end, error)

    # What the loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class is not derived from it
        if _peer_uid(transport.get_extra_info("socket")) != os.getuid():
            self.end(FleetError(Code.UNAUTHENTICATED, "the other end of the local lane belongs to another user"))

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._error is not None:
            return memoryview(bytearray(1 << 16))  # what comes after a refusal is not looked at
        into = self._header if self._frame is None else self._frame
        return memoryview(into)[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        if self._error is not None:
            return
        self._filled += nbytes
        if self._frame is None:
            if self._filled == _LENGTH.size:
                self._begin_frame()
        elif self._filled == len(self._frame):
            frame, self._frame, self._filled = self._frame, None, 0
            self._deliver(frame)

    def eof_received(self) -> None:
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._on_end(self._error or FleetError(Code.LANE_LOST, f"the local lane broke: {exc or 'closed by the peer'}"))

    def _begin_frame(self) -> None:
        (length,) = _LENGTH.unpack(self._header)
        self._filled = 0
        if not 0 < length <= self._limit:
            self.refuse(FleetError(Code.FRAME_TOO_LARGE, f"a frame of {length} bytes, the limit is {self._limit}"))
            return
        self._frame = bytearray(length)

    def _deliver(self, frame: bytearray) -> None:
        try:
            self._on_frame(frame)
        except FleetError as error:
            self.end(error)


async def listen_locally(port: int, make: Callable[[], FrameSocket]) -> asyncio.AbstractServer | None:
    """Serves the local name of a process that listens on ``port``; None where there can be no such name."""
    if sys.platform != "linux":
        return None
    listening = socket.socket(socket.AF_UNIX)
    try:
        listening.bind(_name(port))
    except OSError as error:
        listening.close()
        _log.warning("no local lanes: %s", error)
        return None
    return await asyncio.get_running_loop().create_unix_server(make, sock=listening)


async def connect_locally(address: str, make: Callable[[], FrameSocket]) -> FrameSocket | None:
    """A connection to the process at ``host:port``, if it is on this machine, of this user, and offers one."""
    host, _, port = address.rpartition(":")
    if sys.platform != "linux" or not _is_this_machine(host.strip("[]")):
        return None
    connected = socket.socket(socket.AF_UNIX)
    connected.settimeout(_CONNECT_S)
    try:
        connected.connect(_name(int(port)))
        if _peer_uid(connected) != os.getuid():
            raise PermissionError("the other end belongs to another user")
    except OSError as error:
        connected.close()
        _log.info("%s has no local lane: %s", address, error)
        return None
    connected.setblocking(False)
    _, connection = await asyncio.get_running_loop().create_unix_connection(make, sock=connected)
    return connection


def _name(port: int) -> str:
    """In Linux's abstract namespace, which ports share with it: gone with the process, and not seen from other pods."""
    return f"\0expertfleet-{os.getuid()}-lane-{port}"


def _is_this_machine(host: str) -> bool:
    """Whether an address of this host can be bound here."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    if address.is_loopback:
        return True
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((host, 0))
        except OSError:
            return False
    return True


def _peer_uid(connected: socket.socket) -> int:
    credentials = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(credentials)[1])
