"""The worker's end of one lane: a long-lived connection to one expert shard, opened again whenever it breaks.

Knows nothing of routes: it carries frames and hands answers to whoever posted. Everything here runs on the IO loop.
1. A local socket where the shard is on this machine and offers one, else a gRPC stream; 2. HELLO both ways; 3. ``post``
frames, each with a sink for its answers; 4. when the connection breaks, every waiting sink gets LANE_LOST and the lane is
down until the next HELLO.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable

import grpc

from ..membership import wire
from ..proto.codec import Buffer, Error, Hello, Result, decode, encode_cancel, encode_hello
from ..proto.errors import Code, FleetError, from_details
from ..proto.lane import PATH, channel_options
from ..proto.local_lane import FrameSocket, connect_locally

logger = logging.getLogger(__name__)

Sink = Callable[[Result | FleetError], None]
_MAX_BACKOFF_S = 1.0
_GREETING_S = 5.0


class Lane:
    """``on_change`` is called whenever the lane goes up or down; ``local`` forbids or allows local sockets."""

    def __init__(
        self, seat: str, address: str, hello: Hello, on_change: Callable[[], None], *, local: bool = True
    ) -> None:
        self.seat = seat
        self.address = address
        self.up = False
        self.last_error: FleetError | None = None
        self.max_frame_bytes = hello.max_frame_bytes
        self._hello = hello
        self._on_change = on_change
        self._local = local
        self._sinks: dict[int, Sink] = {}
        self._write: Callable[[bytes], None] = _nowhere
        self._task = asyncio.get_running_loop().create_task(self._run())

    def post(self, frame_id: int, frame: bytes, sink: Sink) -> None:
        """Sends a DISPATCH frame; ``sink`` gets its RESULT pieces, or one FleetError and nothing after it."""
        if not self.up:
            sink(FleetError(Code.LANE_LOST, f"the lane to {self.seat} is down"))
            return
        self._sinks[frame_id] = sink
        self._write(frame)

    def cancel(self, frame_id: int) -> None:
        """The answers to a frame are no longer wanted."""
        if self._sinks.pop(frame_id, None) is not None:
            self._write(encode_cancel(frame_id))

    def forget(self, frame_id: int) -> None:
        """The last answer to a frame came."""
        self._sinks.pop(frame_id, None)

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        backoff_s = 0.05
        try:
            while True:
                error = await self._connect_once()
                backoff_s = 0.05 if self.up else min(_MAX_BACKOFF_S, backoff_s * 2)
                self._break(error)
                await asyncio.sleep(backoff_s)
        finally:
            self._break(FleetError(Code.LANE_LOST, f"the lane to {self.seat} was closed"))

    async def _connect_once(self) -> FleetError:
        """One connection, from greeting to break; the error that ended it."""
        try:
            async with asyncio.timeout(_GREETING_S) as self._greeting:
                if self._local and (error := await self._over_socket()):
                    return error
                return await self._over_grpc()
        except TimeoutError:
            return FleetError(Code.LANE_LOST, f"{self.seat} at {self.address} sent no greeting in {_GREETING_S} s")
        except FleetError as error:
            return error

    async def _over_socket(self) -> FleetError | None:
        """None if the shard has no local lane for this process."""
        ended: asyncio.Future[FleetError] = asyncio.get_running_loop().create_future()

        def end(error: FleetError) -> None:
            if not ended.done():
                ended.set_result(error)

        connection = await connect_locally(
            self.address, lambda: FrameSocket(self._hello.max_frame_bytes, self._receive, end)
        )
        if connection is None:
            return None
        self._write = connection.send
        connection.send(encode_hello(self._hello))
        try:
            return await ended
        finally:
            connection.end(FleetError(Code.LANE_LOST, f"the lane to {self.seat} was closed"))

    async def _over_grpc(self) -> FleetError:
        options = channel_options(self._hello.max_frame_bytes)
        outgoing: asyncio.Queue[bytes] = asyncio.Queue()
        async with wire.open_channel(self.address, options) as channel:
            stream = channel.stream_stream(PATH)()
            self._write = outgoing.put_nowait
            outgoing.put_nowait(encode_hello(self._hello))
            writer = asyncio.get_running_loop().create_task(_write_all(stream, outgoing))
            try:
                while (data := await stream.read()) is not grpc.aio.EOF:
                    self._receive(data)
                if not self.up:
                    return from_details(await stream.code(), await stream.details())
                return FleetError(Code.LANE_LOST, f"{self.seat} ended the lane")
            except grpc.aio.AioRpcError as error:
                return from_details(error.code(), error.details())
            finally:
                writer.cancel()
                stream.cancel()

    def _receive(self, data: Buffer) -> None:
        answer = decode(data, self._hello.max_frame_bytes)
        if not self.up:
            self._greet(answer)
        elif isinstance(answer, Result):
            sink = self._sinks.get(answer.frame_id)
            if sink is not None:
                sink(answer)
        elif isinstance(answer, Error) and not answer.frame_id:
            raise FleetError(answer.code, f"{self.seat}: {answer.message}")
        elif isinstance(answer, Error):
            sink = self._sinks.pop(answer.frame_id, None)
            if sink is not None:
                sink(FleetError(answer.code, f"{self.seat}: {answer.message}"))
        else:
            raise FleetError(Code.BAD_FRAME, f"{self.seat} sent a {type(answer).__name__} frame")

    def _greet(self, hello: object) -> None:
        """The first frame of a connection; the lane is up after it."""
        if isinstance(hello, Error):
            raise FleetError(hello.code, hello.message)
        if not isinstance(hello, Hello):
            raise FleetError(Code.BAD_FRAME, f"{self.seat} greeted with a {type(hello).__name__}")
        if hello.seat != self.seat:
            raise FleetError(Code.LANE_LOST, f"{self.address} is {hello.seat}, not {self.seat}")
        self._greeting.reschedule(None)
        self.max_frame_bytes = hello.max_frame_bytes
        self.up = True
        self.last_error = None
        logger.info("lane to %s at %s is up", self.seat, self.address)
        self._on_change()

    def _break(self, error: FleetError) -> None:
        was_up, self.up = self.up, False
        self._write = _nowhere
        if str(error) != str(self.last_error):
            logger.warning("lane to %s at %s is down: %s", self.seat, self.address, error)
        self.last_error = error
        sinks, self._sinks = self._sinks, {}
        if was_up:
            self._on_change()
        lost = FleetError(Code.LANE_LOST, f"the lane to {self.seat} broke: {error}")
        for sink in sinks.values():
            sink(lost)


def _nowhere(frame: bytes) -> None:
    """For frames of a lane that is down."""


async def _write_all(stream: grpc.aio.StreamStreamCall, outgoing: "asyncio.Queue[bytes]") -> None:
    """Until the stream ends; why it did is for the reader to find out."""
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        while True:
            await stream.write(await outgoing.get())
