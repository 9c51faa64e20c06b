"""The end of the gateway: what runs, and how it is brought to its end.

Knows nothing of HTTP servers. 1. ``draining`` refuses new requests; 2. ``finish`` waits for the running ones; 3. those left
are ended with an error.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from ..http.errors import shutting_down
from .running_request import RunningRequest


class Drain:
    def __init__(self) -> None:
        self.draining = False
        self._runs: set[RunningRequest] = set()
        self._num_requests = 0
        self._changed = asyncio.Event()

    @contextmanager
    def request(self) -> Iterator[None]:
        """Counts one HTTP request from its first to its last byte."""
        self._num_requests += 1
        try:
            yield
        finally:
            self._num_requests -= 1
            self._changed.set()

    @contextmanager
    def track(self, run: RunningRequest) -> Iterator[None]:
        self._runs.add(run)
        try:
            yield
        finally:
            self._runs.discard(run)

    async def finish(self, timeout_s: float) -> bool:
        """Whether every request was over in time."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._num_requests:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    def abort(self) -> None:
        """Ends what runs with an error frame or answer."""
        for run in self._runs:
            run.abort(shutting_down())
