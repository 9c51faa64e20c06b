"""Drives a load: all streams at once, each its own request, once or again and again.

Knows nothing of what happens to the fleet meanwhile, and judges nothing.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any, Self

import httpx

from .stream import Recording, record

_PAUSE_S = 0.2
_TICK_S = 0.02
_NAMES_S = 30.0
DEADLY_SEED = 2_109_876_543  # no stream's, or hardly
_TIMEOUT = httpx.Timeout(10.0, read=None)


class Driver:
    """One client for all streams."""

    def __init__(self, url: str, bodies: list[dict[str, Any]]) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self._client = httpx.AsyncClient(trust_env=False, timeout=_TIMEOUT, limits=limits)
        self._url, self._bodies = url, bodies
        self._num_runs = 0

    async def __aenter__(self) -> Self:
        names = (await self._client.get(f"{self._url}/v1/models", timeout=_NAMES_S)).raise_for_status().json()
        self._bodies = [{"model": names["data"][0]["id"], **body} for body in self._bodies]
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._client.aclose()

    @property
    def num_streams(self) -> int:
        return len(self._bodies)

    def halve(self) -> None:
        """From now on there are half as many streams, those of the lowest numbers."""
        self._bodies = self._bodies[: max(1, len(self._bodies) // 2)]

    async def send_deadly(self) -> str:
        """One request of which every worker dies that runs it, where the fleet is made so; how it failed, empty if it did not."""
        recording = Recording(-1)
        await record(self._client, self._url, {**self._bodies[0], "seed": DEADLY_SEED}, recording)
        return recording.error

    def new_run(self) -> "Run":
        """No worker has its prompts in a cache from a run before."""
        self._num_runs += 1
        salt = {"cache_salt": f"run {self._num_runs}"}
        return Run(self._client, self._url, [body | salt for body in self._bodies])


class Run:
    """``recordings`` are in the order in which requests were sent; ``lag_s`` is the most that this client itself was late."""

    def __init__(self, client: httpx.AsyncClient, url: str, bodies: list[dict[str, Any]]) -> None:
        self._client, self._url, self._bodies = client, url, bodies
        self._first: dict[int, Recording] = {}
        self._may_ask = asyncio.Event()
        self._may_ask.set()
        self._num_running = 0
        self.recordings: list[Recording] = []
        self.lag_s = 0.0

    async def drive(self, enough: asyncio.Event) -> None:
        """Every stream at least once, then again until ``enough``; what has begun is finished."""
        watch = asyncio.create_task(self._watch_lag())
        try:
            await asyncio.gather(*(self._repeat(index, enough) for index in range(len(self._bodies))))
        finally:
            watch.cancel()

    def has_delivered(self, num_tokens: int) -> bool:
        """Whether every stream's first answer has so many tokens or is over."""
        return len(self._first) == len(self._bodies) and all(
            recording.ended is not None or len(recording.token_ids) >= num_tokens for recording in self._first.values()
        )

    @contextlib.asynccontextmanager
    async def resting(self) -> AsyncIterator[None]:
        """Inside, no request runs: what has begun is finished, and nothing new is asked."""
        self._may_ask.clear()
        while self._num_running:
            await asyncio.sleep(_TICK_S)
        try:
            yield
        finally:
            self._may_ask.set()

    async def _watch_lag(self) -> None:
        while True:
            due = time.monotonic() + _TICK_S
            await asyncio.sleep(_TICK_S)
            self.lag_s = max(self.lag_s, time.monotonic() - due)

    async def _repeat(self, index: int, enough: asyncio.Event) -> None:
        while True:
            await self._may_ask.wait()
            recording = Recording(index)
            self._first.setdefault(index, recording)
            self.recordings.append(recording)
            self._num_running += 1
            try:
                await record(self._client, self._url, self._bodies[index], recording)
            finally:
                self._num_running -= 1
            if enough.is_set():
                return
            if recording.error:
                await asyncio.sleep(_PAUSE_S)  # a fleet that refuses at once is not to be flooded
