"""The worker's end of the TCP connections beside a lane's gRPC stream: one for what is soon answered, one for bulk.

Knows nothing of routes' meaning. Small dispatches and their answers take a connection that the reactor's thread reads itself, so
that an answer wakes one thread. Large ones take another, which the IO thread reads while the reactor's thread computes. Until the
shard has greeted on a connection, and where it offers none or lets nobody in, frames take the stream.
"""

import asyncio
import ctypes
import logging
import socket

from ...kernels import native_lanes
from ...membership import security
from ...proto.address import join_address, split_address
from ...proto.codec import Dispatch, Hello, decode, dispatch_parts, encode_cancel
from ...proto.errors import Code, FleetError
from ...proto.frame_prefix import Buffer
from ...proto.rows import Rows, address_of
from ...transport.io_thread import IoThread
from ...transport.reactor import Reactor
from ...transport.tcp_lane import TcpSocket, Ticket
from .connection import Connection, Owner
from .frame_in_flight import FrameInFlight

_log = logging.getLogger(__name__)
_CONNECT_S = 5.0
_SMALL_BYTES = 512 << 10  # of the answers to a dispatch


class TcpSideChannel:
    """Belongs to the reactor's thread, but for ``connect``."""

    def __init__(
        self, lane: Owner, connection: Connection, io: IoThread, reactor: Reactor, max_frame_bytes: int
    ) -> None:
        self._lane, self._connection = lane, connection
        self._io, self._reactor, self._max_frame_bytes = io, reactor, max_frame_bytes
        self._small: _SideConnection | None = None
        self._large: _SideConnection | None = None
        self._carried_by: dict[int, _SideConnection] = {}  # by frame id
        self._results: dict[int, Rows] = {}  # of usual frames, by their ids
        self.calls = native_lanes.calls()  # None where no frame is usual
        self._end_at = ctypes.addressof(lane.end)
        self._connected: list[socket.socket] = []  # not begun
        self._closed = False

    async def connect(self, ticket: Ticket) -> None:
        """On the IO loop, once the lane is up."""
        host, _ = split_address(self._lane.address)
        try:
            async with asyncio.timeout(_CONNECT_S):
                for _ in ("small", "large"):
                    self._connected.append(await _connect(host, ticket.port))
        except OSError as error:  # as is running out of time
            self._discard()
            what = f"{self._lane.seat} cannot be reached over TCP at {join_address(host, ticket.port)}"
            _log.warning("%s, frames take gRPC: %s", what, str(error) or f"no answer in {_CONNECT_S} s")
        else:
            self._reactor.post(self._begin, ticket)
        if self._closed:
            self._discard()

    @property
    def is_usable(self) -> bool:
        """Whether no frame of a dispatch takes the stream any more."""
        return all(side is not None and side.usable for side in (self._small, self._large))

    def post(self, frame: Dispatch) -> bool:
        answer_bytes = len(frame.route_rows) * frame.rows.row_bytes
        side = self._small if answer_bytes <= _SMALL_BYTES else self._large
        if side is None or not side.usable:
            return False
        self._carried_by[frame.frame_id] = side
        side.socket.send(dispatch_parts(frame, self._lane.version))
        return True

    def sent(self, frame: FrameInFlight) -> None:
        """Gives memory to the answers of a frame that a compiled call has sent, and sends the rest of the frame."""
        assert self.calls is not None, "compiled calls have sent it"
        assert self._small is not None, "its end is open"
        self._carried_by[frame.frame_id] = self._small
        frame.memory = self._results[frame.frame_id] = results = Rows.new(frame.num_routes, frame.hidden, frame.dtype)
        frame.expect(self.calls, self._end_at, results.address)
        if frame.unsent is not None:
            self._small.socket.send_rest(*frame.unsent)

    def ignore(self, frame_id: int) -> None:
        if frame_id in self._results and self.calls is not None:
            self.calls.forget(self._end_at, frame_id)

    def cancel(self, frame_id: int) -> bool:
        side = self._carried_by.get(frame_id)
        if side is None:
            return False
        side.socket.send((encode_cancel(frame_id, self._lane.version),))
        return True

    def free(self, frame_id: int) -> None:
        self._carried_by.pop(frame_id, None)
        self._results.pop(frame_id, None)

    def close(self) -> None:
        """Also from another thread, when the reactor's has ended."""
        self._closed = True
        self._discard()
        error = FleetError(Code.LANE_LOST, f"the lane to {self._lane.seat} ends")
        small, large, self._small, self._large = self._small, self._large, None, None
        if small is not None:
            native_lanes.close_end(self._lane.end)
            small.socket.end(error)
        if large is not None:
            self._io.post(large.socket.end, error)

    def _discard(self) -> None:
        """Closes what has not begun."""
        while self._connected:
            self._connected.pop().close()

    def _begin(self, ticket: Ticket) -> None:
        if not self._closed:
            small, large = self._connected
            self._connected.clear()
            self._small = self._open(small, self._reactor, ticket)
            self._large = self._open(large, self._io, ticket)

    def _open(self, connected: socket.socket, watcher: Reactor | IoThread, ticket: Ticket) -> "_SideConnection":
        def on_frame(data: Buffer) -> None:
            if watcher is self._reactor:
                self._received(side, data)
            else:
                self._reactor.post(self._received, side, data)

        def on_end(error: FleetError) -> None:
            self._reactor.post(self._ended, side, error)

        side = _SideConnection(TcpSocket(connected, watcher, self._io, self._max_frame_bytes, on_frame, on_end))
        side.socket.send((ticket.secret.encode(),))
        return side

    def _ended(self, side: "_SideConnection", error: FleetError) -> None:
        """The lane ends with a connection that has carried frames, and does without one that never did."""
        if side.usable:
            self._connection.end(error)
            return
        if not self._closed:
            _log.warning("%s lets nobody in over TCP, frames take gRPC: %s", self._lane.seat, error)
        if side is self._small:
            self._small = None
        if side is self._large:
            self._large = None

    def _received(self, side: "_SideConnection", data: Buffer) -> None:
        if side.usable:
            self._lane.received(self._connection, data)
            return
        try:
            hello = decode(data, self._max_frame_bytes)
            if not isinstance(hello, Hello):
                raise FleetError(Code.BAD_FRAME, f"{self._lane.seat} greeted over TCP with a {type(hello).__name__}")
        except FleetError as error:
            self._connection.end(error)
            return
        side.usable = True
        if side is self._small and not side.socket.is_tls and self.calls is not None:
            self._enable_fast_path(self.calls, side.socket)

    def _enable_fast_path(self, calls: native_lanes.Calls, connection: TcpSocket) -> None:
        """From now on compiled calls send small frames, and read usual answers to where they shall be."""
        end, end_at, noted = self._lane.end, self._end_at, self._lane.noted
        scratch_at = address_of(connection.scratch)

        def receive(room: int) -> int:
            size: int = calls.take_results(end_at, scratch_at, room)
            native_lanes.each_that_came(end, noted)
            return native_lanes.check(size)

        native_lanes.open_end(end, connection.file_number, self._lane.version, connection.clear)
        end.most_frame_bytes, end.most_answer_bytes = self._lane.limits.max_frame_bytes, _SMALL_BYTES
        connection.receive = receive


class _SideConnection:
    """A connection, usable once the shard has greeted on it."""

    def __init__(self, connected: TcpSocket) -> None:
        self.socket = connected
        self.usable = False


async def _connect(host: str, port: int) -> socket.socket:
    """Raises OSError."""
    loop = asyncio.get_running_loop()
    family, kind, protocol, _, address = (await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM))[0]
    connected = socket.socket(family, kind, protocol)
    try:
        connected.setblocking(False)
        await loop.sock_connect(connected, address)
        context = security.socket_context(server_side=False)
        if context is None:
            return connected
        return await loop.run_in_executor(None, security.secure_socket, context, connected, _CONNECT_S)
    except BaseException:
        connected.close()
        raise
