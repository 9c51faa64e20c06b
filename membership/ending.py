"""The end of a worker process: drain, then shut down, once, whoever asks and from however many threads.

Knows nothing of what the worker does. ``drain`` finishes running work within a time and says whether all was finished;
``shut_down`` ends threads and servers. ``begun`` tells a loader that its work is no longer wanted.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future


class Ending:
    """``run`` and ``wait`` block and must not be called on the IO thread; ``drain`` may be called twice."""

    def __init__(self, drain: Callable[[float], bool], shut_down: Callable[[], None]) -> None:
        self.begun = threading.Event()
        self._drain = drain
        self._shut_down = shut_down
        self._once = threading.Lock()
        self._over = threading.Event()
        self._finished = False

    def wait(self) -> None:
        self._over.wait()

    def run(self, drain_s: float) -> bool:
        """Whether everything finished in time; later callers wait for the first one's end and get its answer."""
        if not self._once.acquire(blocking=False):
            self._over.wait()
            return self._finished
        self.begun.set()
        try:
            self._finished = self._drain(drain_s)
            self._shut_down()
        finally:
            self._over.set()
        return self._finished

    async def asked(self, timeout_s: float) -> bool:
        """For a Drain call: answers once the work is drained, and the process ends even if the caller has gone."""
        drained: Future[bool] = Future()
        drained.set_running_or_notify_cancel()  # NOTE: from here on a caller that goes cannot cancel it

        def aside() -> None:
            drained.set_result(self._drain(timeout_s))
            self.run(0.0)

        threading.Thread(target=aside, name="ending", daemon=True).start()
        return await asyncio.wrap_future(drained)
