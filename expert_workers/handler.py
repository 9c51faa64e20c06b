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
from ..proto.codec import Cancel, Dispatch, Hello, decode, encode_error, encode_hello, frame_id_of
from ..proto.errors import Code, FleetError
from ..proto.generated import expert_pb2, expert_pb2_grpc, membership_pb2
from .holdings import Holdings
from .pool import Job, Pool

logger = logging.getLogger(__name__)


class LaneEnd:
    """The shard's end of one lane; ``answer`` is called from the runtime thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._frames: deque[bytes] = deque()
        self._waiting = asyncio.Event()
        self.closed = False

    def answer(self, frame: bytes) -> None:
        """Queues a frame for the peer, from any thread; the frames of a closed lane are dropped."""
        self._frames.append(frame)
        if not self.closed and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._waiting.set)

    async def write_all(self, context: grpc.aio.ServicerContext) -> None:
        while True:
            await self._waiting.wait()
            self._waiting.clear()
            while self._frames:
                await context.write(self._frames.popleft())


class LaneHandler:
    """Serves every lane of the shard."""

    def __init__(self, holdings: Holdings, pool: Pool, hello: Hello) -> None:
        self._holdings = holdings
        self._pool = pool
        self._hello = hello
        self.num_refused = 0

    async def stream(self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> None:
        lane = LaneEnd(asyncio.get_running_loop())
        writer = asyncio.create_task(lane.write_all(context))
        try:
            await self._serve(lane, requests, context)
        finally:
            lane.closed = True
            self._pool.cancel(lane)
            writer.cancel()

    async def _serve(self, lane: LaneEnd, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> None:
        greeted = False
        async for frame in requests:
            try:
                if greeted:
                    self._receive(lane, frame)
                else:
                    self._greet(frame)
                    greeted = True
                    lane.answer(encode_hello(self._hello))
            except FleetError as error:
                self.num_refused += 1
                if not greeted:
                    await context.abort(error.status, error.details)
                lane.answer(encode_error(frame_id_of(frame), error))

    def _greet(self, frame: bytes) -> None:
        hello = decode(frame, self._hello.max_frame_bytes)
        if not isinstance(hello, Hello):
            raise FleetError(Code.BAD_FRAME, f"the first frame is a {type(hello).__name__}, not a Hello")
        if hello.fingerprint != self._hello.fingerprint:
            raise FleetError(
                Code.FOREIGN_CHECKPOINT,
                f"{hello.seat} serves checkpoint {hello.fingerprint[:16]}, this shard {self._hello.fingerprint[:16]}",
            )
        if hello.dtype != self._hello.dtype:
            raise FleetError(
                Code.WRONG_DTYPE, f"{hello.seat} sends {hello.dtype}, this shard computes {self._hello.dtype}"
            )

    def _receive(self, lane: LaneEnd, data: bytes) -> None:
        frame = decode(data, self._hello.max_frame_bytes)
        if isinstance(frame, Cancel):
            self._pool.cancel(lane, frame.frame_id)
        elif isinstance(frame, Dispatch):
            self._holdings.admit(frame)
            self._pool.put(Job(frame, lane.answer, lane, time.monotonic() + frame.deadline_us / 1e6))
        else:
            raise FleetError(Code.BAD_FRAME, f"a shard takes no {type(frame).__name__} frame here")


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
