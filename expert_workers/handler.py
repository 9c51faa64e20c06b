"""The wire side of a shard: lanes in, answers out, and the control calls.

Knows nothing of kernels. A lane is one bidirectional stream: HELLO both ways, then DISPATCH and CANCEL in, RESULT and
ERROR out, with one writer task a lane (two concurrent writes would end the stream).
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc

from ..membership.epoch import EpochId
from ..proto.codec import Buffer, Cancel, Dispatch, Hello, decode, encode_error, encode_hello, frame_id_of
from ..proto.errors import Code, FleetError
from ..proto.generated import expert_pb2, expert_pb2_grpc, membership_pb2
from ..proto.local_lane import FrameSocket
from .holdings import Holdings
from .pool import Job, Pool

logger = logging.getLogger(__name__)


class LaneEnd:
    """The shard's end of one lane. ``send`` takes frames from any thread; ``receive`` belongs to the IO loop."""

    def __init__(self, handler: "LaneHandler", send: Callable[[bytes], None]) -> None:
        self.send = send
        self._handler = handler
        self._greeted = False

    def receive(self, frame: Buffer) -> FleetError | None:
        """The refusal after which the lane must end, if there is one."""
        try:
            if self._greeted:
                self._handler.admit(self, frame)
            else:
                self._handler.greet(frame)
                self._greeted = True
                self.send(encode_hello(self._handler.hello))
        except FleetError as error:
            self._handler.num_refused += 1
            if not self._greeted:
                return error
            self.send(encode_error(frame_id_of(frame), error))
        return None

    def end(self) -> None:
        """Nobody waits for its answers any more."""
        self._handler.pool.cancel(self)


class LaneHandler:
    """Serves every lane of the shard, over gRPC and over local sockets."""

    def __init__(self, holdings: Holdings, pool: Pool, hello: Hello) -> None:
        self.pool = pool
        self.hello = hello
        self.num_refused = 0
        self._holdings = holdings

    async def stream(self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> None:
        """A lane over gRPC, from greeting to end."""
        outgoing = Outgoing(asyncio.get_running_loop())
        lane = LaneEnd(self, outgoing.put)
        writer = asyncio.create_task(outgoing.write_all(context))
        try:
            async for frame in requests:
                if refusal := lane.receive(frame):
                    await context.abort(refusal.status, refusal.details)
        finally:
            outgoing.closed = True
            lane.end()
            writer.cancel()

    def connect(self) -> FrameSocket:
        """A lane over a local socket, for a connection that comes in."""
        loop = asyncio.get_running_loop()
        connection = FrameSocket(self.hello.max_frame_bytes, lambda frame: receive(frame), lambda error: lane.end())

        def send(frame: bytes) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(connection.send, frame)

        def receive(frame: bytearray) -> None:
            if refusal := lane.receive(frame):
                connection.refuse(refusal)

        lane = LaneEnd(self, send)
        return connection

    def greet(self, frame: Buffer) -> None:
        """Raises FleetError for somebody this shard cannot serve."""
        hello = decode(frame, self.hello.max_frame_bytes)
        if not isinstance(hello, Hello):
            raise FleetError(Code.BAD_FRAME, f"the first frame is a {type(hello).__name__}, not a Hello")
        if hello.fingerprint != self.hello.fingerprint:
            raise FleetError(
                Code.FOREIGN_CHECKPOINT,
                f"{hello.seat} serves checkpoint {hello.fingerprint[:16]}, this shard {self.hello.fingerprint[:16]}",
            )
        if hello.dtype != self.hello.dtype:
            raise FleetError(
                Code.WRONG_DTYPE, f"{hello.seat} sends {hello.dtype}, this shard computes {self.hello.dtype}"
            )

    def admit(self, lane: LaneEnd, data: Buffer) -> None:
        """Queues what was asked. Raises FleetError."""
        frame = decode(data, self.hello.max_frame_bytes)
        if isinstance(frame, Cancel):
            self.pool.cancel(lane, frame.frame_id)
        elif isinstance(frame, Dispatch):
            self._holdings.admit(frame)
            self.pool.put(Job(frame, lane.send, lane, time.monotonic() + frame.deadline_us / 1e6))
        else:
            raise FleetError(Code.BAD_FRAME, f"a shard takes no {type(frame).__name__} frame here")


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
    """Describe, RaiseMinEpoch and Drain."""

    def __init__(
        self,
        holdings: Holdings,
        describe: Callable[[], membership_pb2.WorkerReport],
        drain: Callable[[float], Awaitable[bool]],
    ) -> None:
        self._holdings = holdings
        self._describe = describe
        self._drain = drain

    async def Describe(
        self, request: expert_pb2.DescribeRequest, context: grpc.aio.ServicerContext
    ) -> membership_pb2.WorkerReport:
        return self._describe()

    async def RaiseMinEpoch(
        self, request: expert_pb2.RaiseMinEpochRequest, context: grpc.aio.ServicerContext
    ) -> expert_pb2.RaiseMinEpochReply:
        minimum = self._holdings.raise_min_epoch(EpochId.from_proto(request.min_epoch))
        return expert_pb2.RaiseMinEpochReply(min_epoch=minimum.to_proto())

    async def Drain(
        self, request: membership_pb2.DrainRequest, context: grpc.aio.ServicerContext
    ) -> membership_pb2.DrainReply:
        return membership_pb2.DrainReply(finished=await self._drain(request.timeout_s))
