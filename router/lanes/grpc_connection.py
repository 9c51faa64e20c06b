"""A lane's connection over gRPC: a stream on the IO loop, and what may go beside it.

Frames take TCP connections where the shard offers them (``tcp_side_channel.py``), large rows a pair (``pairs.py``), all else the stream.
Knows nothing of routes' meaning. Frames are encoded and decoded on the reactor's thread; the loop only carries them.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable

import grpc
import torch

from ...membership import security
from ...proto.codec import Dispatch, Hello, Result, dispatch_rows, encode_cancel, encode_dispatch
from ...proto.errors import Code, FleetError, from_call, from_details
from ...proto.frame_prefix import NO_PAIR, PAIRS_SINCE
from ...proto.group_frames import GroupFrame
from ...proto.rows import Rows
from ...transport.io_thread import IoThread
from ...transport.lane import PATH, channel_options
from ...transport.pair_group import PairSettings
from ...transport.reactor import Reactor
from ...transport.tcp_lane import METADATA_KEY, Ticket
from .connection import Owner, SideChannel, settle
from .frame_in_flight import FrameInFlight
from .pairs import WorkerPairs
from .tcp_side_channel import TcpSideChannel

logger = logging.getLogger(__name__)


class GrpcConnection:
    """A stream on the IO loop; frames go and come through it as they are."""

    def __init__(
        self,
        lane: Owner,
        io: IoThread,
        reactor: Reactor,
        max_frame_bytes: int,
        pair: PairSettings,
        *,
        tcp: bool,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[FleetError] = self._loop.create_future()
        self._lane, self._reactor, self._max_frame_bytes = lane, reactor, max_frame_bytes
        self._outgoing: asyncio.Queue[bytes] = asyncio.Queue()
        self._pair = pair
        self._pairs: WorkerPairs | None = None
        self._tcp = TcpSideChannel(lane, self, io, reactor, max_frame_bytes) if tcp else None
        # In the order in which they are offered a frame.
        self._side_channels: list[SideChannel] = [self._tcp] if self._tcp is not None else []
        self._version = 0  # until the shard has greeted
        self._tasks: list[asyncio.Task[None]] = []
        self._stream: grpc.aio.StreamStreamCall | None = None

    @property
    def keeps_order(self) -> bool:
        return self._pairs is None

    def open(self, hello: bytes) -> None:
        self._send(hello)
        self._post(self._begin)

    def greeted(self, hello: Hello, version: int) -> None:
        self._version = version
        if version >= PAIRS_SINCE and hello.pair == self._pair.transport != NO_PAIR:
            self._pairs = WorkerPairs(self._pair, self._lane, self, self._reactor, self._send, version)
            self._side_channels.insert(0, self._pairs)
        elif self._pair.transport != NO_PAIR:
            logger.warning("%s exchanges rows by %s, not %s: over gRPC", hello.seat, hello.pair, self._pair.transport)
        if self._tcp is not None:
            if self._pairs is not None:
                self._tcp.calls = None  # as rows may go by the pair
            self._post(self._begin_tcp, self._tcp)

    def max_rows(self, hello: Hello, row_bytes: int, top_k: int) -> int:
        return dispatch_rows(hello.max_frame_bytes, row_bytes, top_k)

    def post(self, frame: Dispatch, row_ids: torch.Tensor | None) -> None:
        if row_ids is not None:
            frame = frame.with_rows(Rows.of(frame.rows.tensor[row_ids]))
        if not any(channel.post(frame) for channel in self._side_channels):
            self._send(encode_dispatch(frame, self._version))

    def sent(self, frame: FrameInFlight) -> None:
        assert self._tcp is not None, "only its connections are open to compiled calls"
        self._tcp.sent(frame)

    def ignore(self, frame_id: int) -> None:
        if self._tcp is not None:
            self._tcp.ignore(frame_id)

    def answer(self, frame: object) -> Result | None:
        return frame if isinstance(frame, Result) else None

    def on_pair(self, frame: GroupFrame) -> None:
        if self._pairs is None:
            raise FleetError(Code.BAD_FRAME, f"{self._lane.seat} sent a {type(frame).__name__} frame without a pair")
        self._pairs.received(frame)

    def cancel(self, frame_id: int) -> bool:
        if not any(channel.cancel(frame_id) for channel in self._side_channels):
            self._send(encode_cancel(frame_id, self._version))
        return False

    def free(self, frame_id: int) -> None:
        for channel in self._side_channels:
            channel.free(frame_id)

    def end(self, error: FleetError) -> None:
        for channel in self._side_channels:
            channel.close()
        self._post(self._end, error)

    def discard(self) -> None:
        """There is nothing yet that would have to be closed."""

    def _send(self, frame: bytes) -> None:
        self._post(self._outgoing.put_nowait, frame)

    def _post(self, call: Callable[..., object], *args: object) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call, *args)

    # From here on everything runs on the IO loop.

    def _begin(self) -> None:
        self._tasks.append(self._loop.create_task(self._run()))

    def _begin_tcp(self, tcp: TcpSideChannel) -> None:
        self._tasks.append(self._loop.create_task(self._connect_tcp(tcp)))

    def _end(self, error: FleetError) -> None:
        settle(self.ended, error)
        for task in self._tasks:
            task.cancel()

    async def _connect_tcp(self, tcp: TcpSideChannel) -> None:
        """If the shard has said where; a stream that ends says why to its reader."""
        assert self._stream is not None
        try:
            offered = dict(await self._stream.initial_metadata()).get(METADATA_KEY)
            if offered is not None:
                await tcp.connect(Ticket.parse(str(offered)))
        except grpc.aio.AioRpcError:
            return
        except FleetError as error:
            self._end(error)

    async def _run(self) -> None:
        options = channel_options(self._max_frame_bytes)
        async with security.open_channel(self._lane.address, options) as channel:
            self._stream = stream = channel.stream_stream(PATH)()
            writer = self._loop.create_task(_write_all(stream, self._outgoing))
            try:
                while (data := await stream.read()) is not grpc.aio.EOF:
                    self._reactor.post(self._lane.received, self, data)
                error = from_details(await stream.code(), await stream.details(), await stream.trailing_metadata())
                if await stream.code() is grpc.StatusCode.OK:
                    error = FleetError(Code.LANE_LOST, f"{self._lane.seat} ended the lane")
                settle(self.ended, error)
            except grpc.aio.AioRpcError as error:
                settle(self.ended, from_call(error))
            finally:
                writer.cancel()
                stream.cancel()


async def _write_all(stream: grpc.aio.StreamStreamCall, outgoing: "asyncio.Queue[bytes]") -> None:
    """Until the stream ends; why it did is for the reader to find out."""
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        while True:
            await stream.write(await outgoing.get())
