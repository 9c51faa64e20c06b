"""Frames over TCP, or TLS on it, beside the gRPC stream of their lane: a frame costs its thread a call to the kernel and no other thread.

Knows nothing of what frames say. Whoever opens a lane's stream is told there, in its metadata, a port and a ticket
(``Ticket``); on a connection to that port the first frame is the ticket, and a stranger's connection ends with it. Each frame
follows its length, u64. What the kernel does not take at once the IO loop sends as soon as it does.
"""

import ctypes
import logging
import secrets
import socket
import ssl
import struct
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np

from ..proto.address import family_of
from ..proto.errors import Code, FleetError
from ..proto.frame_prefix import Buffer
from .io_thread import IoThread
from .reactor import Reactor, Timer

_log = logging.getLogger(__name__)
METADATA_KEY = "expertfleet-frames"
_LENGTH = struct.Struct("<Q")
_TICKET_BYTES = 32
_SCRATCH_BYTES = 256 << 10
_WHOLE_BYTES = 32 << 10  # a frame that has not come whole and is larger gets memory of its own
_GLANCE_BYTES = 4 << 10  # of the scratch are read after such a frame, as another may follow
_MOST_READ = 16
_MOST_PARTS = 64
_MAX_WAITING_BYTES = 1 << 30
_MAX_STRANGERS = 64
_GREETING_S = 5.0
_NOT_NOW = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_SILENT_S = 15  # so long data may stay unacknowledged


class Watcher(Protocol):
    """A reactor or the IO thread: its thread reads."""

    def watch(self, watched: socket.socket, readable: Callable[[], object]) -> None: ...

    def unwatch(self, watched: socket.socket) -> None: ...

    def post(self, call: Callable[..., object], *args: object) -> None: ...


@dataclass(frozen=True, slots=True)
class Ticket:
    """Where a lane's owner may open connections for its frames, and what it shows there."""

    port: int
    secret: str

    @staticmethod
    def draw(port: int) -> "Ticket":
        return Ticket(port, secrets.token_hex(_TICKET_BYTES // 2))

    def __str__(self) -> str:
        return f"{self.port}:{self.secret}"

    @staticmethod
    def parse(text: str) -> "Ticket":
        """Raises FleetError BAD_FRAME."""
        port, _, secret = text.partition(":")
        if not (port.isascii() and port.isdecimal() and 0 < int(port) < 1 << 16 and len(secret) == _TICKET_BYTES):
            raise FleetError(Code.BAD_FRAME, f"{METADATA_KEY}: not a port and a ticket")
        return Ticket(int(port), secret)


class TcpSocket:
    """One end of a connection; ``send`` is for any thread, all else for the watcher's.

    ``on_frame`` gets every frame, ``on_end`` is called once with why it ended. ``limit`` is the largest frame that is taken. All
    three may be replaced by whoever takes the connection over.
    """

    def __init__(
        self,
        connected: socket.socket,
        watcher: Watcher,
        io: IoThread,
        limit: int,
        on_frame: Callable[[Buffer], object],
        on_end: Callable[[FleetError], object],
    ) -> None:
        self.limit = limit
        self._socket, self._watcher, self._io = connected, watcher, io
        self.on_frame, self.on_end = on_frame, on_end
        # Reads at most so many bytes to the beginning of ``scratch``, where a frame may begin, and says how many came; less than 0
        # where none came, or none that is left to do. None where the socket's own call is taken.
        self.receive: Callable[[int], int] | None = None
        self.scratch = bytearray(_SCRATCH_BYTES)
        self.clear = ctypes.c_int64(1)  # not 0 while nothing waits to be sent
        self._lock = threading.Lock()
        self._waiting: deque[memoryview] = deque()  # what the kernel has not taken
        self._waiting_bytes = 0
        self._ended = False
        self._scratch = memoryview(self.scratch)
        self._body: memoryview | None = None  # of a frame under way that has memory of its own
        self._have = 0  # bytes in the body, if there is one, else in the scratch
        self._reach = _SCRATCH_BYTES  # how far the scratch is read into
        self.is_tls = isinstance(connected, ssl.SSLSocket)  # whose calls must not meet
        connected.setblocking(False)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (("KEEPIDLE", 10), ("KEEPINTVL", 5), ("KEEPCNT", 1), ("USER_TIMEOUT", 1000 * _SILENT_S)):
            if hasattr(socket, f"TCP_{name}"):
                connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, f"TCP_{name}"), value)
        watcher.watch(connected, self._read)

    @property
    def file_number(self) -> int:
        return self._socket.fileno()

    def send(self, parts: Sequence[Buffer]) -> None:
        """One frame, in parts whose bytes must stay as they are. Frames for an end that is gone are dropped."""
        whole = [_LENGTH.pack(sum(map(len, parts))), *parts]
        with self._lock:
            if self._ended:
                return
            try:
                left = whole if self._waiting else self._write(whole)
            except OSError as error:
                self._break(error)
            else:
                self._keep(left)

    def send_rest(self, parts: Sequence[Buffer], num_left: int) -> None:
        """The same for a frame of which the kernel has taken, with its length, all but ``num_left`` bytes."""
        whole = [_LENGTH.pack(sum(map(len, parts))), *parts]
        with self._lock:
            if not self._ended:
                self._keep(_after(whole, sum(map(len, whole)) - num_left))

    def end(self, error: FleetError) -> None:
        """Closes the connection at once; ``error`` is what ``on_end`` hears."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
            self.clear.value = 0
            self._waiting.clear()
        self._watcher.unwatch(self._socket)
        self._io.post(self._close)
        self.on_end(error)

    def _keep(self, left: Sequence[Buffer]) -> None:
        """What the kernel did not take waits."""
        if not left:
            return
        self.clear.value = 0
        if not self._waiting:
            self._io.post(self._await_room)
        self._waiting.extend(map(memoryview, left))
        self._waiting_bytes += sum(map(len, left))
        if self._waiting_bytes > _MAX_WAITING_BYTES:
            self._break(f"the other end left {_MAX_WAITING_BYTES} bytes unread")

    def _break(self, why: object) -> None:
        self._watcher.post(self.end, FleetError(Code.LANE_LOST, f"the lane's connection broke: {why}"))

    def _write(self, parts: Sequence[Buffer]) -> Sequence[Buffer]:
        """What the kernel did not take. Raises OSError."""
        try:
            if self.is_tls:
                parts = parts if len(parts) == 1 else (b"".join(parts),)  # to be offered again as it was
                return _after(parts, self._socket.send(parts[0]))
            return _after(parts, self._socket.sendmsg(parts))
        except _NOT_NOW:
            return parts

    def _await_room(self) -> None:
        """On the IO loop, as are ``_flush`` and ``_close``."""
        if not self._ended:
            self._io.loop.add_writer(self._socket.fileno(), self._flush)

    def _flush(self) -> None:
        with self._lock:
            try:
                while self._waiting:
                    parts = list(islice(self._waiting, 1 if self.is_tls else _MOST_PARTS))
                    left = self._write(parts)
                    for _ in parts:
                        self._waiting.popleft()
                    self._waiting.extendleft(map(memoryview, reversed(left)))
                    if left:
                        return
                self._waiting_bytes = 0
                self.clear.value = not self._ended
            except OSError as error:
                self._break(error)
            self._io.loop.remove_writer(self._socket.fileno())

    def _close(self) -> None:
        self._io.loop.remove_writer(self._socket.fileno())
        self._socket.close()

    def _read(self) -> None:
        """What has come; no flood without end."""
        reads = 0
        try:
            while not self._ended and self._receive():
                reads += 1
                if reads >= _MOST_READ and not (isinstance(self._socket, ssl.SSLSocket) and self._socket.pending()):
                    return
        except _NOT_NOW:
            return
        except OSError as error:
            self.end(FleetError(Code.LANE_LOST, f"the lane's connection broke: {error}"))
        except FleetError as error:
            self.end(error)

    def _receive(self) -> bool:
        """Whether there may be more."""
        if self.receive is not None and self._body is None and not self._have:
            size = self.receive(self._reach)
            return size >= 0 and self._came(size, self._reach)
        space = self._scratch[self._have : self._reach] if self._body is None else self._body[self._have :]
        if self.is_tls:
            with self._lock:
                size = self._socket.recv_into(space)
        else:
            size = self._socket.recv_into(space)
        return self._came(size, len(space))

    def _came(self, size: int, room: int) -> bool:
        """Whether there may be more than what came now into so much room."""
        if not size:
            raise FleetError(Code.LANE_LOST, "the lane's connection broke: closed by the peer")
        self._have += size
        if self._body is None:
            self._cut()
        elif self._have == len(self._body):
            body, self._body, self._have, self._reach = self._body, None, 0, _GLANCE_BYTES
            self.on_frame(body)
            return self.is_tls  # whoever waits for this frame waits no longer; what follows is told again
        return self.is_tls or size == room

    def _cut(self) -> None:
        """The frames in the scratch."""
        at, end = 0, self._have
        self._have = 0
        while end - at >= _LENGTH.size and not self._ended:
            (size,) = _LENGTH.unpack_from(self._scratch, at)
            if size > self.limit:
                raise FleetError(Code.FRAME_TOO_LARGE, f"frame of {size} bytes; the limit is {self.limit}")
            begin = at + _LENGTH.size
            if begin + size <= end:
                at, self._reach = begin + size, _SCRATCH_BYTES
                self.on_frame(bytearray(self._scratch[begin:at]))
                continue
            if size > _WHOLE_BYTES:
                self._body = np.empty(size, np.uint8).data
                self._have = end - begin
                self._body[: self._have] = self._scratch[begin:end]
                return
            self._reach = _SCRATCH_BYTES
            break
        self._have = end - at
        self._scratch[: self._have] = self._scratch[at:end]


class TcpServer:
    """Listens for lanes' connections; belongs to the reactor's thread.

    ``on_ticket(secret, connection)`` takes the connection over, by its ``limit``, ``on_frame`` and ``on_end``, or says False.
    ``secure()`` gives the context for the next connection, None for plain TCP.
    """

    def __init__(
        self,
        reactor: Reactor,
        io: IoThread,
        host: str,
        port: int,
        on_ticket: Callable[[str, TcpSocket], bool],
        secure: Callable[[], ssl.SSLContext | None],
    ) -> None:
        """Raises OSError where it cannot listen; port 0 takes any free one."""
        self._listening = socket.create_server((host, port), family=family_of(host))
        self._listening.setblocking(False)
        self.port: int = self._listening.getsockname()[1]
        self._reactor, self._io, self._on_ticket, self._secure = reactor, io, on_ticket, secure
        self._num_shaking = 0
        self._closed = False
        self._strangers: dict[TcpSocket, Timer] = {}
        reactor.watch(self._listening, self._accept)

    def close(self) -> None:
        self._closed = True
        self._reactor.unwatch(self._listening)
        self._listening.close()
        for stranger in list(self._strangers):
            stranger.end(FleetError(Code.DRAINING, "the shard ends"))

    def _accept(self) -> None:
        try:
            connected, _ = self._listening.accept()
        except OSError:
            return
        if len(self._strangers) + self._num_shaking >= _MAX_STRANGERS:
            connected.close()
            return
        try:
            context = self._secure()
        except OSError as error:
            connected.close()
            _log.warning("a connection to the lanes' port was turned away: %s", error)
            return
        if context is None:
            self._admit(connected)
        else:
            self._num_shaking += 1
            threading.Thread(target=self._shake_hands, args=(connected, context), daemon=True).start()

    def _shake_hands(self, connected: socket.socket, context: ssl.SSLContext) -> None:
        """On a thread of its own."""
        try:
            connected.settimeout(_GREETING_S)
            connected = context.wrap_socket(connected, server_side=True)
        except OSError as error:
            connected.close()
            self._reactor.post(self._on_shaken, connected, error)
        else:
            self._reactor.post(self._on_shaken, connected, None)

    def _on_shaken(self, connected: socket.socket, error: OSError | None) -> None:
        self._num_shaking -= 1
        if error is not None:
            _log.warning("a connection to the lanes' port was turned away: %s", error)
        elif self._closed:
            connected.close()
        else:
            self._admit(connected)

    def _admit(self, connected: socket.socket) -> None:
        stranger = TcpSocket(
            connected,
            self._reactor,
            self._io,
            _TICKET_BYTES,
            lambda frame: self._look_at(stranger, frame),
            lambda error: self._turn_away(stranger, error),
        )
        silent = FleetError(Code.UNAUTHENTICATED, f"no ticket came in {_GREETING_S} s")
        self._strangers[stranger] = self._reactor.call_later(_GREETING_S, lambda: stranger.end(silent))

    def _look_at(self, stranger: TcpSocket, frame: Buffer) -> None:
        if not self._on_ticket(bytes(frame).decode("ascii", "replace"), stranger):
            raise FleetError(Code.UNAUTHENTICATED, "no lane has the ticket that it showed")
        self._strangers.pop(stranger).cancel()

    def _turn_away(self, stranger: TcpSocket, error: FleetError) -> None:
        self._strangers.pop(stranger).cancel()
        _log.warning("a connection to the lanes' port was turned away: %s", error)


def _after(parts: Sequence[Buffer], sent: int) -> list[Buffer]:
    """What is left of the parts after so many bytes."""
    for index, part in enumerate(parts):
        if sent < len(part):
            return [memoryview(part)[sent:], *parts[index + 1 :]]
        sent -= len(part)
    return []
