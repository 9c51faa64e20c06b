"""Lanes between processes of one machine: frames over a Unix socket, rows and results in shared memory.

Knows nothing of what frames say, but for the ERROR that ends a connection. A shard that listens on port P also listens on
an abstract Unix socket named after P; both ends ask the kernel whether the other one is the same user. A message of the socket is
a frame; the worker's first one, its HELLO, carries the file of the shared memory. Everything here belongs to a reactor's
thread, but for ``connect_locally``.
"""

import ctypes
import ipaddress
import logging
import os
import socket
import struct
import sys
from collections import deque
from collections.abc import Callable

from ..proto.address import split_address
from ..proto.codec import encode_error
from ..proto.errors import Code, FleetError
from ..proto.frame_prefix import Buffer
from .reactor import Reactor

_log = logging.getLogger(__name__)
MAX_MESSAGE_BYTES = 128 << 10
_CREDENTIALS = struct.Struct("<iII")  # pid, uid, gid: struct ucred
_MAX_WAITING = 4096
_MOST_READ = 256
_LAST_WORDS_S = 0.5
_CONNECT_S = 1.0


class FrameSocket:
    """One end of a connection. ``on_frame`` gets every frame, ``on_end`` is called once with why it ended."""

    def __init__(
        self,
        reactor: Reactor,
        connected: socket.socket,
        on_frame: Callable[[Buffer], object],
        on_end: Callable[[FleetError], object],
    ) -> None:
        self.received_file = -1  # what came with the first message, this object's to close
        # Reads a message to ``buffer`` and says how large it is; less than 0 where there is none, or none that is left to do.
        self.receive: Callable[[], int] = self._receive_first
        self.buffer = bytearray(MAX_MESSAGE_BYTES + 1)
        self.clear = ctypes.c_int64(1)  # not 0 while nothing waits to be sent
        self._reactor, self._socket = reactor, connected
        self._on_frame, self._on_end = on_frame, on_end
        self._waiting: deque[bytes] = deque()
        self._ended = False
        self._refused = False
        connected.setblocking(False)
        reactor.watch(connected, self._read)

    @property
    def file_number(self) -> int:
        return self._socket.fileno()

    def send(self, frame: bytes, file: int | None = None) -> None:
        """Frames for an end that is gone are dropped; ``file`` may travel with the first one."""
        if self._ended:
            return
        if self._waiting:
            self._wait_with(frame)
            return
        try:
            if file is None:
                self._socket.send(frame)
            else:
                socket.send_fds(self._socket, [frame], [file])
        except BlockingIOError:
            self._wait_with(frame)
        except OSError as error:
            self.end(FleetError(Code.LANE_LOST, f"the local lane broke: {error}"))

    def end(self, error: FleetError) -> None:
        """Closes the connection at once; ``error`` is what ``on_end`` hears."""
        if self._ended:
            return
        self._ended = True
        self.receive = _nothing
        self.clear.value = 0
        self._reactor.unwatch(self._socket)
        self._socket.close()
        if self.received_file >= 0:
            os.close(self.received_file)
        self._on_end(error)

    def refuse(self, error: FleetError) -> None:
        """The same, after the other end was told why in an ERROR frame of no dispatch, and had time to read it."""
        if not self._refused:
            self._refused = True
            self.receive = self._receive
            self.send(encode_error(0, error))
            self._reactor.call_later(_LAST_WORDS_S, lambda: self.end(error))

    def _read(self) -> None:
        """All that has come, so that what belongs together is computed together; but no flood without end."""
        for _ in range(_MOST_READ):
            if self._ended:
                return
            try:
                size = self.receive()
            except BlockingIOError:
                return
            except OSError as error:
                self.end(FleetError(Code.LANE_LOST, f"the local lane broke: {error}"))
                return
            if size < 0 or self._ended:
                return
            if not size:
                self.end(FleetError(Code.LANE_LOST, "the local lane broke: closed by the peer"))
            elif self._refused:
                continue  # what comes after a refusal is not looked at
            elif size > MAX_MESSAGE_BYTES:
                self.refuse(FleetError(Code.FRAME_TOO_LARGE, f"a frame larger than {MAX_MESSAGE_BYTES} bytes"))
            else:
                self._deliver(self.buffer[:size])

    def _receive(self) -> int:
        return self._socket.recv_into(self.buffer)

    def _receive_first(self) -> int:
        message, files, _, _ = socket.recv_fds(self._socket, len(self.buffer), 1)
        self.receive = self._receive
        self.buffer[: len(message)] = message
        self.received_file = files[0] if files else -1
        return len(message)

    def _deliver(self, frame: Buffer) -> None:
        try:
            self._on_frame(frame)
        except FleetError as error:
            self.end(error)

    def _wait_with(self, frame: bytes) -> None:
        self.clear.value = 0
        self._waiting.append(frame)
        if len(self._waiting) > _MAX_WAITING:
            self.end(FleetError(Code.LANE_LOST, f"the other end left {_MAX_WAITING} frames unread"))
        else:
            self._reactor.watch(self._socket, self._read, self._flush)

    def _flush(self) -> None:
        while self._waiting and not self._ended:
            try:
                self._socket.send(self._waiting[0])
            except BlockingIOError:
                return
            except OSError as error:
                self.end(FleetError(Code.LANE_LOST, f"the local lane broke: {error}"))
                return
            self._waiting.popleft()
        if not self._ended:
            self.clear.value = 1
            self._reactor.watch(self._socket, self._read)


class LocalServer:
    """The local name of a process that listens on ``port``; ``on_connection`` gets a socket of a process of this user."""

    def __init__(self, reactor: Reactor, port: int, on_connection: Callable[[socket.socket], object]) -> None:
        """Raises OSError where there can be no such name."""
        if sys.platform != "linux":
            raise OSError("abstract Unix sockets are Linux's own")
        self._reactor, self._on_connection = reactor, on_connection
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._listening.bind(_name(port))
            self._listening.listen(128)
        except OSError:
            self._listening.close()
            raise
        self._listening.setblocking(False)
        reactor.watch(self._listening, self._accept)

    def close(self) -> None:
        self._reactor.unwatch(self._listening)
        self._listening.close()

    def _accept(self) -> None:
        try:
            connected, _ = self._listening.accept()
        except OSError:
            return
        if _peer_uid(connected) == os.getuid():
            self._on_connection(connected)
        else:
            _log.warning("a process of another user was turned away from the local lane")
            connected.close()


def connect_locally(address: str) -> socket.socket | None:
    """A connection to the process at ``host:port``, if it is on this machine, of this user, and offers one."""
    host, port = split_address(address)
    if sys.platform != "linux" or not _is_this_machine(host):
        return None
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connected.settimeout(_CONNECT_S)
    try:
        connected.connect(_name(port))
        if _peer_uid(connected) != os.getuid():
            raise PermissionError("the other end belongs to another user")
    except OSError as error:
        connected.close()
        _log.info("%s has no local lane: %s", address, error)
        return None
    return connected


def _nothing() -> int:
    return -1


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
