"""Server-sent events: a running request as a stream of frames.

Knows nothing of the frames' contents. The headers go out with the first token, or after a short wait without one once workers have
taken the request, so that a request which they refuse gets its HTTP status; later errors are a last frame. Silence is filled with comment lines, and one
before the end says so if an answer changed its numerics class.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Protocol

from ..engine.running_request import RunningRequest
from ..events.answer import Event
from ..http.errors import ApiError

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
# A worker says at once whether it takes a sequence, but a busy gateway may need a while to hear it, and no worker may be there.
_DECIDED_S = 30.0
INEXACT = b": inexact-continuations %d\n\n"


class Format(Protocol):
    def opening(self) -> list[dict[str, Any]]: ...
    def chunk(self, index: int, event: Event) -> dict[str, Any] | None: ...
    def closing(self) -> list[dict[str, Any]]: ...


def frame(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


class EventFrames:
    """``begin`` may raise the request's error; after it ``frames`` never raises."""

    def __init__(self, run: RunningRequest, format: Format, keep_alive_s: float) -> None:
        self._run = run
        self._events = run.events()
        self._format = format
        self._keep_alive_s = keep_alive_s
        self._next: asyncio.Task[tuple[int, Event] | None] | None = None

    async def begin(self, wait_s: float) -> None:
        self._next = asyncio.create_task(_next(self._events))
        await self._run.wait_until_decided(_DECIDED_S)
        done, _ = await asyncio.wait({self._next}, timeout=wait_s)
        if done and self._next.exception() is not None:
            self._next.result()

    async def frames(self) -> AsyncGenerator[bytes, None]:
        try:
            for chunk in self._format.opening():
                yield frame(chunk)
            async for piece in self._token_frames():
                yield piece
            if self._run.num_inexact:
                yield INEXACT % self._run.num_inexact
            yield b"".join(map(frame, self._format.closing())) + DONE
        except ApiError as error:
            yield frame(error.body)

    async def close(self) -> None:
        if self._next is not None:
            self._next.cancel()
            await asyncio.gather(self._next, return_exceptions=True)

    async def _token_frames(self) -> AsyncGenerator[bytes, None]:
        loop = asyncio.get_running_loop()
        quiet_until = loop.time() + self._keep_alive_s
        while True:
            assert self._next is not None
            done, _ = await asyncio.wait({self._next}, timeout=max(0.0, quiet_until - loop.time()))
            if not done:
                yield KEEP_ALIVE
                quiet_until = loop.time() + self._keep_alive_s
                continue
            item = self._next.result()
            if item is None:
                return
            chunk = self._format.chunk(*item)
            self._next = asyncio.create_task(_next(self._events))
            if chunk is not None:
                yield frame(chunk)
                quiet_until = loop.time() + self._keep_alive_s


async def _next(events: AsyncIterator[tuple[int, Event]]) -> tuple[int, Event] | None:
    return await anext(events, None)
