"""One streamed chat as its client sees it: what came, when, and how it ended.

Knows nothing of what should have come. A request is sent once; whatever keeps it from a proper end is its ``error``, in words.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import httpx

_FIRST_S = 300.0  # a prompt waits for those before it
_SILENCE_S = 60.0
_TEXTS = {"reasoning_content": "reasoning", "content": "content"}


@dataclass
class Recording:
    """``stamps``: when each chunk with tokens came, on the clock of ``began``; ``error`` is empty after a proper end."""

    request: int
    began: float = 0.0
    stamps: list[float] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    finish_reason: str = ""
    num_counted: int | None = None
    error: str = ""
    ended: float | None = None

    @property
    def gaps(self) -> list[float]:
        """Seconds between one chunk with tokens and the next."""
        return [after - before for before, after in pairwise(self.stamps)]

    @property
    def first_token_s(self) -> float | None:
        return self.stamps[0] - self.began if self.stamps else None

    def take(self, chunk: dict[str, Any], now: float) -> None:
        if "error" in chunk:
            raise StreamError(f"{chunk['error'].get('code')}: {chunk['error'].get('message')}")
        if chunk.get("usage"):
            self.num_counted = chunk["usage"]["completion_tokens"]
        for choice in chunk["choices"]:
            self._take_delta(choice["delta"])
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
            if choice.get("token_ids"):
                self.token_ids += choice["token_ids"]
                self.stamps.append(now)

    def check_end(self) -> None:
        if not self.finish_reason:
            raise StreamError(f"no finish reason after {len(self.token_ids)} tokens")
        if self.num_counted != len(self.token_ids):
            raise StreamError(f"usage counts {self.num_counted} tokens, {len(self.token_ids)} came")

    def _take_delta(self, delta: dict[str, Any]) -> None:
        for key, kind in _TEXTS.items():
            if delta.get(key):
                self._add(kind, delta[key])
        for call in delta.get("tool_calls") or ():
            function = call["function"]
            opening = f"\n{call['id']} {function['name']} " if "id" in call else ""
            self._add("calls", opening + function["arguments"])

    def _add(self, kind: str, text: str) -> None:
        self.texts[kind] = self.texts.get(kind, "") + text


class StreamError(Exception):
    """How a stream failed."""


async def record(client: httpx.AsyncClient, url: str, body: dict[str, Any], recording: Recording) -> None:
    """Fills ``recording`` as the answer comes."""
    recording.began = time.monotonic()
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(_patience_s(recording)) as silence:
            async for chunk in _chunks(client, url, body):
                recording.take(chunk, time.monotonic())
                silence.reschedule(loop.time() + _patience_s(recording))
        recording.check_end()
    except TimeoutError:
        recording.error = f"nothing came for {_patience_s(recording):g} s after {len(recording.token_ids)} tokens"
    except httpx.TransportError as error:
        what = f"{type(error).__name__} {error}".strip()
        recording.error = f"{what} after {len(recording.token_ids)} tokens"
    except StreamError as error:
        recording.error = str(error)
    recording.ended = time.monotonic()


def _patience_s(recording: Recording) -> float:
    return _SILENCE_S if recording.token_ids else _FIRST_S


async def _chunks(client: httpx.AsyncClient, url: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as reply:
        if reply.status_code != 200:
            text = (await reply.aread()).decode(errors="replace")
            raise StreamError(f"status {reply.status_code}: {text[:400]}")
        async for line in reply.aiter_lines():
            if line == "data: [DONE]":
                return
            if line.startswith("data: "):
                yield _parsed(line.removeprefix("data: "))
    raise StreamError("the stream ended without [DONE]")


def _parsed(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise StreamError(f"a chunk is not JSON: {text[:200]!r}") from error
    if not isinstance(value, dict):
        raise StreamError(f"a chunk is no object: {text[:200]!r}")
    return value
