"""The worker's end of one lane: a long-lived stream to one expert shard, opened again whenever it breaks.

Knows nothing of routes: it carries frames and hands answers to whoever posted. Everything here runs on the IO loop.
1. HELLO both ways; 2. ``post`` frames, each with a sink for its answers; 3. when the stream breaks, every waiting sink
gets LANE_LOST and the lane is down until the next HELLO.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable

import grpc

from ..proto.codec import Error, Hello, Result, decode, encode_cancel, encode_hello
from ..proto.errors import Code, FleetError, from_details
from ..proto.lane import PATH, channel_options

logger = logging.getLogger(__name__)

Sink = Callable[[Result | FleetError], None]
_MAX_BACKOFF_S = 1.0
_GREETING_S = 5.0


class Lane:
    """``on_change`` is called whenever the lane goes up or down."""

    def __init__(self, seat: str, address: str, hello: Hello, on_change: Callable[[], None]) -> None:
        self.seat = seat
        self.address = address
        self.up = False
        self.last_error: FleetError | None = None
        self.max_frame_bytes = hello.max_frame_bytes
        self._hello = hello
        self._on_change = on_change
        self._sinks: dict[int, Sink] = {}
        self._outgoing: deque[bytes] = deque()
        self._wanted = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._run())

    def post(self, frame_id: int, frame: bytes, sink: Sink) -> None:
        """Sends a DISPATCH frame; ``sink`` gets its RESULT pieces, or one FleetError and nothing after it."""
        if not self.up:
            sink(FleetError(Code.LANE_LOST, f"the lane to {self.seat} is down"))
            return
        self._sinks[frame_id] = sink
        self._send(frame)

    def cancel(self, frame_id: int) -> None:
        """The answers to a frame are no longer wanted."""
        if self._sinks.pop(frame_id, None) is not None:
            self._send(encode_cancel(frame_id))

    def forget(self, frame_id: int) -> None:
        """The last answer to a frame came."""
        self._sinks.pop(frame_id, None)

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def _send(self, frame: bytes) -> None:
        self._outgoing.append(frame)
        self._wanted.set()

    async def _run(self) -> None:
        backoff_s = 0.05
        try:
            while True:
                error = await self._stream_once()
                backoff_s = 0.05 if self.up else min(_MAX_BACKOFF_S, backoff_s * 2)
                self._break(error)
                await asyncio.sleep(backoff_s)
        finally:
            self._break(FleetError(Code.LANE_LOST, f"the lane to {self.seat} was closed"))

    async def _stream_once(self) -> FleetError:
        """One connection, from greeting to break; the error that ended it."""
        options = channel_options(self._hello.max_frame_bytes)
        async with grpc.aio.insecure_channel(self.address, options=options) as channel:
            stream = channel.stream_stream(PATH)()
            writer: asyncio.Task[None] | None = None
            try:
                await self._greet(stream)
                writer = asyncio.get_running_loop().create_task(self._write_all(stream))
                self._set_up()
                while (data := await stream.read()) is not grpc.aio.EOF:
                    self._receive(data)
                return FleetError(Code.LANE_LOST, f"{self.seat} ended the lane")
            except grpc.aio.AioRpcError as error:
                return from_details(error.code(), error.details())
            except FleetError as error:
                return error
            except TimeoutError:
                return FleetError(Code.LANE_LOST, f"{self.seat} at {self.address} sent no greeting in {_GREETING_S} s")
            finally:
                if writer is not None:
                    writer.cancel()
                stream.cancel()

    async def _greet(self, stream: grpc.aio.StreamStreamCall) -> None:
        await stream.write(encode_hello(self._hello))
        data = await asyncio.wait_for(stream.read(), _GREETING_S)
        if data is grpc.aio.EOF:
            raise from_details(await stream.code(), await stream.details())
        hello = decode(data, self._hello.max_frame_bytes)
        if not isinstance(hello, Hello):
            raise FleetError(Code.BAD_FRAME, f"{self.seat} greeted with a {type(hello).__name__}")
        if hello.seat != self.seat:
            raise FleetError(Code.LANE_LOST, f"{self.address} is {hello.seat}, not {self.seat}")
        self.max_frame_bytes = hello.max_frame_bytes

    async def _write_all(self, stream: grpc.aio.StreamStreamCall) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            while self._outgoing:
                await stream.write(self._outgoing.popleft())

    def _receive(self, data: bytes) -> None:
        answer = decode(data, self._hello.max_frame_bytes)
        if isinstance(answer, Result):
            sink = self._sinks.get(answer.frame_id)
            if sink is not None:
                sink(answer)
        elif isinstance(answer, Error):
            sink = self._sinks.pop(answer.frame_id, None)
            if sink is not None:
                sink(FleetError(answer.code, f"{self.seat}: {answer.message}"))
        else:
            raise FleetError(Code.BAD_FRAME, f"{self.seat} sent a {type(answer).__name__} frame")

    def _set_up(self) -> None:
        self.up = True
        self.last_error = None
        logger.info("lane to %s at %s is up", self.seat, self.address)
        self._on_change()

    def _break(self, error: FleetError) -> None:
        was_up, self.up = self.up, False
        if str(error) != str(self.last_error):
            logger.warning("lane to %s at %s is down: %s", self.seat, self.address, error)
        self.last_error = error
        sinks, self._sinks = self._sinks, {}
        self._outgoing.clear()
        if was_up:
            self._on_change()
        lost = FleetError(Code.LANE_LOST, f"the lane to {self.seat} broke: {error}")
        for sink in sinks.values():
            sink(lost)
