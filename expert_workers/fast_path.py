"""The fast path of a shard: it reads, computes and answers a small frame in compiled calls when nothing else waits.

Knows nothing of kernels. A compiled call reads a frame from its socket and checks all of it (``kernels/native_lanes.py``). What the
call does not take goes on to the lane as it came, and the lane alone says what is wrong with it. All on the runtime's thread.
"""

import ctypes
from collections.abc import Callable

from ..kernels import native_lanes
from ..kernels.native_lanes import HANDLED, NOTHING, AdmissionFilter, ShardEnd, check
from ..proto.codec import result_parts, result_rows
from ..proto.frame_prefix import dtype_of
from ..proto.rows import Rows, address_of
from ..transport.local_lane import FrameSocket
from ..transport.shared_memory import SharedMemory
from ..transport.tcp_lane import TcpSocket
from .runtime import MIN_SLICE_ROUTES


class FastPath:
    """``at_once(asked, results, answer)`` computes them to an address, calls ``answer`` and says so, or leaves them to the pool."""

    def __init__(self, filter: AdmissionFilter, at_once: Callable[[ShardEnd, int, Callable[[], None]], bool]) -> None:
        self._filter, self._at_once = filter, at_once
        self._hidden, self._dtype = filter.hidden, dtype_of(filter.dtype)
        self._calls = native_lanes.calls()

    def read_local(
        self, connection: FrameSocket, version: int, memory: SharedMemory, say: Callable[[int, int, int, int], None]
    ) -> None:
        """From now on, on a connection whose ends have greeted. ``say`` tells the worker by the lane's own way of results: their frame,
        first route and count, and the number of the frame's routes."""
        if (calls := self._calls) is None:
            return
        end = self._end(connection.file_number, version, MIN_SLICE_ROUTES)
        end.memory, end.memory_bytes = memory.address, memory.size
        end_at, buffer_at, room = ctypes.addressof(end), address_of(connection.buffer), len(connection.buffer)
        mapped = memory.memory

        def answer() -> None:
            if not connection.clear or calls.send_result_shm(end_at):
                say(end.frame_id, 0, end.num_routes, end.num_routes)

        def receive() -> int:
            assert mapped is not None  # stays until this has returned, even if the lane ends meanwhile
            size: int = calls.take_dispatch_shm(end_at, buffer_at, room)
            if size != HANDLED:
                return check(size)
            return NOTHING if self._at_once(end, end.results, answer) else end.size

        connection.receive = receive

    def read_tcp(self, connection: TcpSocket, version: int) -> None:
        """The same over TCP, where results are sent; over TLS all is as it was."""
        if (calls := self._calls) is None or connection.is_tls:
            return
        most = min(MIN_SLICE_ROUTES, result_rows(self._hidden, self._dtype.itemsize))  # what fits a piece
        end = self._end(connection.file_number, version, most)
        end_at, scratch_at = ctypes.addressof(end), address_of(connection.scratch)
        kept = self._room_for(most)

        def answer() -> None:
            nonlocal kept
            num_left = calls.give_result(end_at, kept.address) if connection.clear else NOTHING
            if num_left:
                parts = result_parts(end.frame_id, 0, end.num_routes, kept.part(0, end.num_routes), version)
                if num_left > 0:
                    connection.send_rest(parts, num_left)
                else:
                    connection.send(parts)
                kept = self._room_for(most)  # the results that wait stay as they are

        def receive(room: int) -> int:
            size: int = calls.take_dispatch(end_at, scratch_at, room)
            if size != HANDLED:
                return check(size)
            if self._at_once(end, kept.address, answer):
                return NOTHING
            return end.size + native_lanes.LENGTH_BYTES

        connection.receive = receive

    def _end(self, socket_number: int, version: int, most_routes: int) -> ShardEnd:
        end = ShardEnd(socket=socket_number, version=version, most_routes=most_routes)
        end.filter = ctypes.pointer(self._filter)
        return end

    def _room_for(self, num_routes: int) -> Rows:
        return Rows.new(num_routes, self._hidden, self._dtype)
