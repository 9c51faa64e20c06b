"""A lane's connection to a shard of this machine: frames over a local socket, rows and results in shared memory.

Knows nothing of routes' meaning. The memory is this end's: it decides what lies where, and an area is free again only when the
shard has ended the frame that it belongs to.
"""

import asyncio
import contextlib
import ctypes
import socket
from dataclasses import dataclass

import torch

from ...kernels import native_lanes
from ...proto.codec import (
    Dispatch,
    DispatchShm,
    Hello,
    Result,
    ResultShm,
    dispatch_shm_rows,
    encode_cancel,
    encode_dispatch_shm,
)
from ...proto.errors import Code, FleetError
from ...proto.group_frames import GroupFrame
from ...proto.rows import address_of
from ...transport.local_lane import MAX_MESSAGE_BYTES, FrameSocket
from ...transport.reactor import Reactor
from ...transport.shared_memory import KEPT_BYTES, Arena, aligned
from .connection import Owner, settle
from .frame_in_flight import FrameInFlight

_AREA_BYTES = 8 << 20  # reserved for the next usual frame; only what it uses of it takes memory
_MOST_SPARE = 4


@dataclass(slots=True)
class _Area:
    """What belongs to one frame: its rows, and from ``results_at`` on its results."""

    begin: int
    results_at: int
    dtype: torch.dtype
    num_routes: int
    hidden: int
    was_reserved: bool = False  # as large as any other that was


class LocalConnection:
    """Rows and results lie in memory that this end made; the socket carries where."""

    keeps_order = True

    def __init__(self, lane: Owner, reactor: Reactor, connected: socket.socket, arena: Arena) -> None:
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[FleetError] = self._loop.create_future()
        self._lane, self._reactor, self._connected, self._arena = lane, reactor, connected, arena
        self._socket: FrameSocket | None = None
        self._version = 0  # until the shard has greeted
        self._areas: dict[int, _Area] = {}  # by frame id
        self._spare: list[int] = []  # where areas begin that may be reserved next
        self._calls = native_lanes.calls()
        self._end_at = ctypes.addressof(lane.end)

    def open(self, hello: bytes) -> None:
        self._socket = FrameSocket(
            self._reactor, self._connected, lambda frame: self._lane.received(self, frame), self._on_end
        )
        self._socket.send(hello, self._arena.file)

    def greeted(self, hello: Hello, version: int) -> None:
        self._version = version
        if self._calls is not None:
            self._enable_fast_path(self._calls)

    def max_rows(self, hello: Hello, row_bytes: int, top_k: int) -> int:
        return dispatch_shm_rows(MAX_MESSAGE_BYTES, top_k)

    def post(self, frame: Dispatch, row_ids: torch.Tensor | None) -> None:
        rows, num_routes = frame.rows, len(frame.route_rows)
        num_rows, hidden = rows.count if row_ids is None else row_ids.shape[0], rows.width
        rows_bytes = aligned(num_rows * rows.row_bytes)
        begin = self._arena.allocate(rows_bytes + num_routes * rows.row_bytes)
        if row_ids is None:
            self._arena.put(begin, rows)
        else:
            place = self._arena.rows(begin, rows.dtype, num_rows, hidden)
            torch.index_select(rows.tensor, 0, row_ids, out=place.tensor)
        results_at = begin + rows_bytes
        self._areas[frame.frame_id] = _Area(begin, results_at, rows.dtype, num_routes, hidden)
        placed = DispatchShm(
            frame.frame_id, frame.fingerprint, frame.epoch, frame.layer, frame.priority, frame.timeout_us,
            rows.dtype, num_rows, hidden, begin, results_at, frame.route_rows, frame.route_experts,
        )  # fmt: skip
        self._send(encode_dispatch_shm(placed, self._version))

    def sent(self, frame: FrameInFlight) -> None:
        begin = self._lane.end.area
        results_at = begin + aligned(frame.num_rows * frame.row_bytes)
        self._areas[frame.frame_id] = _Area(begin, results_at, frame.dtype, frame.num_routes, frame.hidden, True)
        frame.memory = self._arena.memory
        assert self._calls is not None, "compiled calls have sent it"
        frame.expect(self._calls, self._end_at, self._arena_at + results_at)
        self._reserve()

    def ignore(self, frame_id: int) -> None:
        if self._calls is not None:
            self._calls.forget(self._end_at, frame_id)

    def answer(self, frame: object) -> Result | None:
        if not isinstance(frame, ResultShm) or frame.frame_id not in self._areas:
            return None
        area = self._areas[frame.frame_id]
        if frame.num_routes != area.num_routes:
            return None
        row_bytes = area.hidden * area.dtype.itemsize
        at = area.results_at + frame.first_route * row_bytes
        rows = self._arena.rows(at, area.dtype, frame.count, area.hidden, alignment=area.dtype.itemsize)
        return Result(frame.frame_id, frame.first_route, frame.num_routes, rows)

    def on_pair(self, frame: GroupFrame) -> None:
        raise FleetError(Code.BAD_FRAME, f"a {type(frame).__name__} frame came over a local lane")

    def cancel(self, frame_id: int) -> bool:
        self._send(encode_cancel(frame_id, self._version))
        return True

    def free(self, frame_id: int) -> None:
        if frame_id in self._areas:  # none is left once the connection has ended
            area, end = self._areas.pop(frame_id), self._lane.end
            if area.was_reserved and len(self._spare) < _MOST_SPARE and area.begin < KEPT_BYTES:
                self._spare.append(area.begin)
            else:
                self._arena.free(area.begin)
            if not self._areas and end.area_bytes and end.area >= KEPT_BYTES:  # reserved during a burst
                self._arena.free(end.area)
                end.area_bytes = 0
            if end.socket >= 0 and not end.area_bytes:
                self._reserve()

    def end(self, error: FleetError) -> None:
        if self._socket is None:
            self.discard()
        else:
            self._socket.end(error)

    def discard(self) -> None:
        if self._socket is None:
            self._connected.close()
            self._arena.close()

    def _enable_fast_path(self, calls: native_lanes.Calls) -> None:
        """From now on compiled calls send small frames, and write down where usual answers are."""
        assert self._socket is not None
        connection, end, end_at, noted = self._socket, self._lane.end, self._end_at, self._lane.noted
        buffer_at, room = address_of(connection.buffer), len(connection.buffer)

        def receive() -> int:
            size: int = calls.take_result_shm(end_at, buffer_at, room)
            native_lanes.each_that_came(end, noted)
            return native_lanes.check(size)

        self._arena_at = self._arena.address
        native_lanes.open_end(end, connection.file_number, self._version, connection.clear)
        end.memory, end.most_frame_bytes, end.most_answer_bytes = self._arena_at, MAX_MESSAGE_BYTES, _AREA_BYTES
        self._reserve()
        connection.receive = receive

    def _reserve(self) -> None:
        """A place for the next usual frame, if there is one."""
        end = self._lane.end
        if self._spare:
            end.area, end.area_bytes = self._spare.pop(), _AREA_BYTES
            return
        end.area_bytes = 0
        with contextlib.suppress(FleetError):
            end.area, end.area_bytes = self._arena.allocate(_AREA_BYTES), _AREA_BYTES

    def _send(self, frame: bytes) -> None:
        assert self._socket is not None
        self._socket.send(frame)

    def _on_end(self, error: FleetError) -> None:
        native_lanes.close_end(self._lane.end)
        self._areas.clear()
        self._arena.close()
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(settle, self.ended, error)
