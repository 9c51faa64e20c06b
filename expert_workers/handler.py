"""The wire side of a shard: lanes in, answers out, and the control calls.

Knows nothing of kernels. A lane over gRPC is one bidirectional stream on the IO loop: HELLO both ways, then DISPATCH and CANCEL
in, RESULT and ERROR out, with one writer task a lane (two concurrent writes would end the stream). Frames may come over TCP
beside it, to the runtime's thread, and are answered where they came. A lane over a local socket is that thread's, too: DISPATCH_SHM and
CANCEL in, RESULT_SHM and ERROR out.
"""

import asyncio
import logging
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import grpc

from ..membership.epoch import EpochId
from ..proto.codec import (
    Cancel,
    Dispatch,
    DispatchShm,
    Frame,
    Hello,
    ResultShm,
    decode,
    encode_error,
    encode_hello,
    encode_result_shm,
    result_parts,
    result_rows,
)
from ..proto.errors import Code, FleetError, abort
from ..proto.frame_prefix import NO_PAIR, PAIRS_SINCE, Buffer, frame_id_of
from ..proto.generated import expert_pb2, expert_pb2_grpc, membership_pb2
from ..proto.group_frames import GroupFrame
from ..proto.rows import Rows
from ..transport.local_lane import FrameSocket
from ..transport.pair_group import PairSettings
from ..transport.reactor import Reactor
from ..transport.shared_memory import SharedMemory
from ..transport.tcp_lane import METADATA_KEY, TcpSocket, Ticket
from .expert_store import ExpertStore
from .fast_path import FastPath
from .pairs import ShardPairs
from .peer_export import ExpertExporter
from .pool import Job, Pool, ReplyLane

logger = logging.getLogger(__name__)


class GrpcLaneServer:
    """The shard's end of a lane over gRPC; ``receive`` and ``close`` belong to the IO loop."""

    def __init__(self, handler: "LaneHandler", send: Callable[[bytes], None]) -> None:
        self.send = send  # from any thread
        self.version = 0  # of this lane's frames; 0 until the worker has greeted
        self.beside: list[TcpLaneServer] = []  # connections for frames of this lane
        self._handler = handler
        self.pairs: ShardPairs | None = None

    def receive(self, data: Buffer) -> FleetError | None:
        """The refusal after which the lane must end, if there is one."""
        try:
            frame = self._handler.decode(data, self.version)
            if not self.version:
                self._greet(frame)
            elif isinstance(frame, GroupFrame) and self.pairs is not None:
                self.pairs.received(frame)
            else:
                self._handler.take(self, frame)
                if self.pairs is not None and isinstance(frame, Cancel):
                    self.pairs.cancel(frame.frame_id)
        except FleetError as error:
            if not self.version:
                self._handler.num_refused += 1
                return error
            self._handler.refuse(self, frame_id_of(data), error)
        return None

    def deliver(self, job: Job, first_route: int, rows: Rows) -> None:
        if self.pairs is None:
            self._over_stream(job, first_route, rows)
        else:
            self.pairs.deliver(job, first_route, rows)

    def close(self) -> None:
        """The stream has ended."""
        self._handler.pool.cancel(self)
        for lane in self.beside:
            self._handler.reactor.post(lane.close)
        if self.pairs is not None:
            self.pairs.close()

    def _greet(self, frame: Frame) -> None:
        handler = self._handler
        hello, self.version = handler.greet(frame)
        if self.version >= PAIRS_SINCE and hello.pair == handler.hello.pair != NO_PAIR:
            limit = hello.max_frame_bytes
            self.pairs = ShardPairs(
                handler.pair, hello.seat, limit, self.version, self.send, self._over_stream, self._admit
            )
        self.send(encode_hello(handler.hello))

    def _admit(self, frame: Dispatch) -> None:
        """A dispatch whose rows came another way."""
        try:
            self._handler.admit(self, frame)
        except FleetError as error:
            self._handler.refuse(self, frame.frame_id, error)

    def _over_stream(self, job: Job, first_route: int, rows: Rows) -> None:
        for parts in _result_frames(job, first_route, rows, self.version):
            self.send(b"".join(parts))


class TcpLaneServer:
    """Frames of a lane that come over TCP, on the runtime's thread."""

    def __init__(self, handler: "LaneHandler", lane: GrpcLaneServer, connection: TcpSocket) -> None:
        self.version = lane.version
        self._handler, self._lane = handler, lane
        self._connection = connection
        connection.limit = handler.hello.max_frame_bytes
        connection.on_frame, connection.on_end = self._receive, self._end
        handler.tcp_lanes.add(self)
        lane.beside.append(self)
        if lane.pairs is None:
            handler.fast_path.read_tcp(connection, self.version)
        self.send(encode_hello(handler.hello))

    def send(self, frame: bytes) -> None:
        self._connection.send((frame,))

    def deliver(self, job: Job, first_route: int, rows: Rows) -> None:
        pairs = self._lane.pairs
        if pairs is not None and job.num_routes * rows.row_bytes >= self._handler.pair.least_bytes:
            pairs.deliver(job, first_route, rows)  # all pieces of a frame one way: that keeps their order
            return
        for parts in _result_frames(job, first_route, rows, self.version):
            self._connection.send(parts)

    def close(self) -> None:
        self._connection.end(FleetError(Code.LANE_LOST, "the lane's stream has ended"))

    def _receive(self, data: Buffer) -> None:
        try:
            self._handler.take(self, self._handler.decode(data, self.version))
        except FleetError as error:
            self._handler.refuse(self, frame_id_of(data), error)

    def _end(self, error: FleetError) -> None:
        self._handler.pool.cancel(self)
        self._handler.tcp_lanes.discard(self)


class LocalLaneServer:
    """The shard's end of a lane over a local socket, on the runtime's thread; it ends every frame in so many words."""

    def __init__(self, handler: "LaneHandler", reactor: Reactor, connected: socket.socket) -> None:
        self.version = 0  # of this lane's frames; 0 until the worker has greeted
        self._handler = handler
        self._memory: SharedMemory | None = None
        self._socket = FrameSocket(reactor, connected, self._receive, self._end)
        self.send = self._socket.send

    def deliver(self, job: Job, first_route: int, rows: Rows) -> None:
        assert job.results is not None
        place = job.results.part(first_route, rows.count)
        if rows.address != place.address:
            place.copy(rows)
        self._send_result_shm(job.frame.frame_id, first_route, rows.count, job.num_routes)

    def close(self) -> None:
        self._socket.end(FleetError(Code.DRAINING, "the shard ends"))

    def _receive(self, data: Buffer) -> None:
        try:
            frame = self._handler.decode(data, self.version)
            if self._memory is None:
                _, self.version = self._handler.greet(frame)
                self._memory = SharedMemory.received(self._socket.received_file)
                self._handler.fast_path.read_local(self._socket, self.version, self._memory, self._send_result_shm)
                self.send(encode_hello(self._handler.hello))
            elif isinstance(frame, DispatchShm):
                self._admit(frame, self._memory)
            elif isinstance(frame, Cancel):
                if self._handler.pool.cancel(self, frame.frame_id):
                    cancelled = FleetError(Code.CANCELLED, "cancelled")
                    self.send(encode_error(frame.frame_id, cancelled, self.version))
            else:
                raise _unwanted(frame)
        except FleetError as error:
            if self._memory is None:
                self._handler.num_refused += 1
                self._socket.refuse(error)
            else:
                self._handler.refuse(self, frame_id_of(data), error)

    def _send_result_shm(self, frame_id: int, first_route: int, count: int, num_routes: int) -> None:
        self.send(encode_result_shm(ResultShm(frame_id, first_route, count, num_routes), self.version))

    def _admit(self, frame: DispatchShm, memory: SharedMemory) -> None:
        rows = memory.rows(frame.rows_at, frame.dtype, frame.num_rows, frame.hidden)
        results = memory.rows(frame.results_at, frame.dtype, len(frame.route_rows), frame.hidden)
        self._handler.admit(self, frame.with_rows(rows), results)

    def _end(self, error: FleetError) -> None:
        self._handler.pool.cancel(self)
        self._handler.local_lanes.discard(self)
        if self._memory is not None:
            self._memory.close()


class LaneHandler:
    """Serves every lane of the shard, over gRPC, TCP beside it and local sockets; ``tcp_port`` is 0 where there is none."""

    def __init__(
        self,
        store: ExpertStore,
        pool: Pool,
        reactor: Reactor,
        hello: Hello,
        pair: PairSettings,
        fast_path: FastPath,
    ) -> None:
        self.pool = pool
        self.fast_path = fast_path
        self.reactor = reactor
        self.hello = hello
        self.pair = pair
        self.num_refused = 0
        self.local_lanes: set[LocalLaneServer] = set()
        self.tcp_lanes: set[TcpLaneServer] = set()
        self.tcp_port = 0
        self._tickets: dict[str, GrpcLaneServer] = {}
        self._store = store

    async def stream(self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> None:
        """A lane over gRPC, from greeting to end."""
        outgoing = Outgoing(asyncio.get_running_loop())
        lane = GrpcLaneServer(self, outgoing.put)
        ticket = Ticket.draw(self.tcp_port)
        if self.tcp_port:
            self._tickets[ticket.secret] = lane
            await context.send_initial_metadata(((METADATA_KEY, str(ticket)),))
        writer = asyncio.create_task(outgoing.write_all(context))
        try:
            async for frame in requests:
                if refusal := lane.receive(frame):
                    await abort(context, refusal)
        finally:
            outgoing.closed = True
            self._tickets.pop(ticket.secret, None)
            lane.close()
            writer.cancel()

    def connect(self, ticket: str, connection: TcpSocket) -> bool:
        """On the runtime's thread: whether a connection belongs to a lane that has greeted."""
        lane = self._tickets.get(ticket)
        if lane is None or not lane.version:
            return False
        TcpLaneServer(self, lane, connection)
        return True

    def decode(self, data: Buffer, version: int) -> Frame:
        return decode(data, self.hello.max_frame_bytes, version or self.hello.newest)

    def greet(self, hello: Frame) -> tuple[Hello, int]:
        """Who greets, and the wire version of the lane. Raises FleetError for somebody this shard cannot serve."""
        if not isinstance(hello, Hello):
            raise FleetError(Code.BAD_FRAME, f"the first frame is a {type(hello).__name__}, not a Hello")
        version = self.hello.version_with(hello)
        if hello.fingerprint != self.hello.fingerprint:
            raise FleetError(
                Code.FOREIGN_CHECKPOINT,
                f"{hello.seat} serves checkpoint {hello.fingerprint[:16]}, this shard {self.hello.fingerprint[:16]}",
            )
        if hello.dtype != self.hello.dtype:
            raise FleetError(
                Code.WRONG_DTYPE, f"{hello.seat} sends {hello.dtype}, this shard computes {self.hello.dtype}"
            )
        return hello, version

    def take(self, lane: ReplyLane, frame: Frame) -> None:
        """What a worker sends once both have greeted. Raises FleetError."""
        if isinstance(frame, Dispatch):
            self.admit(lane, frame)
        elif isinstance(frame, Cancel):
            self.pool.cancel(lane, frame.frame_id)
        else:
            raise _unwanted(frame)

    def refuse(self, lane: ReplyLane, frame_id: int, error: FleetError) -> None:
        self.num_refused += 1
        lane.send(encode_error(frame_id, error, lane.version))

    def admit(self, lane: ReplyLane, frame: Dispatch, results: Rows | None = None) -> None:
        """Queues what was asked. Raises FleetError."""
        self._store.admit(frame)
        self.pool.put(Job(frame, lane, time.monotonic() + frame.timeout_us / 1e6, results))


class Outgoing:
    """Frames on their way to one gRPC stream; ``put`` may be called from any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._frames: deque[bytes] = deque()
        self._waiting = asyncio.Event()
        self.closed = False

    def put(self, frame: bytes) -> None:
        """The frames of a closed stream are dropped."""
        self._frames.append(frame)
        if not self.closed and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._waiting.set)

    async def write_all(self, context: grpc.aio.ServicerContext) -> None:
        while True:
            await self._waiting.wait()
            self._waiting.clear()
            while self._frames:
                await context.write(self._frames.popleft())


class ControlService(expert_pb2_grpc.ExpertShardServicer):
    """Describe, RaiseMinEpoch, ReadExpert and Drain."""

    def __init__(
        self,
        store: ExpertStore,
        giver: ExpertExporter,
        describe: Callable[[], membership_pb2.WorkerReport],
        drain: Callable[[float], Awaitable[bool]],
    ) -> None:
        self._store = store
        self._giver = giver
        self._describe = describe
        self._drain = drain

    async def Describe(
        self, request: expert_pb2.DescribeRequest, context: grpc.aio.ServicerContext
    ) -> membership_pb2.WorkerReport:
        return self._describe()

    async def RaiseMinEpoch(
        self, request: expert_pb2.RaiseMinEpochRequest, context: grpc.aio.ServicerContext
    ) -> expert_pb2.RaiseMinEpochReply:
        minimum = self._store.raise_min_epoch(EpochId.from_proto(request.min_epoch))
        return expert_pb2.RaiseMinEpochReply(min_epoch=minimum.to_proto())

    async def ReadExpert(
        self, request: expert_pb2.ReadExpertRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[expert_pb2.ExpertPiece]:
        try:
            async for piece in self._giver.give(request):
                yield piece
        except FleetError as error:
            await abort(context, error)

    async def Drain(
        self, request: membership_pb2.DrainRequest, context: grpc.aio.ServicerContext
    ) -> membership_pb2.DrainReply:
        return membership_pb2.DrainReply(finished=await self._drain(request.timeout_s))


def _result_frames(job: Job, first_route: int, rows: Rows, version: int) -> Iterator[tuple[Buffer, ...]]:
    """Each frame's parts: pieces that fit any frame limit."""
    step = result_rows(rows.width, rows.dtype.itemsize)
    for start in range(0, rows.count, step):
        piece = rows.part(start, min(step, rows.count - start))
        yield result_parts(job.frame.frame_id, first_route + start, job.num_routes, piece, version)


def _unwanted(frame: Frame) -> FleetError:
    return FleetError(Code.BAD_FRAME, f"a shard takes no {type(frame).__name__} frame here")
