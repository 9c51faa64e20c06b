"""SIGINT and SIGTERM as something that waiting code hears of: the first ends the fleet cleanly, the second at once.

Knows nothing of fleets. A handler only counts; ``wait_until`` raises ``StopAsked`` when more signals came than are
``tolerated`` (none before the drain, one during it).
"""

import signal
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from ..errors import ClusterError

T = TypeVar("T")
_POLL_S = 0.05


class StopAsked(Exception):
    """A signal asked for the end."""


class Stop:
    def __init__(self) -> None:
        self.count = 0
        self.tolerated = 0

    def install(self) -> None:
        """On the main thread."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def check(self) -> None:
        if self.count > self.tolerated:
            raise StopAsked

    def wait_until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """False when ``condition`` did not come true in time."""
        give_up = time.monotonic() + timeout_s
        while True:
            self.check()
            if condition():
                return True
            if time.monotonic() >= give_up:
                return False
            time.sleep(_POLL_S)

    def run(self, work: Callable[[], T], timeout_s: float) -> T | None:
        """``work`` on another thread, so that a signal need not wait for it; None when it takes too long."""
        results: list[T] = []
        errors: list[Exception] = []

        def guarded() -> None:
            try:
                results.append(work())
            except (ClusterError, OSError, RuntimeError) as error:
                errors.append(error)

        thread = threading.Thread(target=guarded, daemon=True)
        thread.start()
        self.wait_until(lambda: not thread.is_alive(), timeout_s)
        if errors:
            raise errors[0]
        return results[0] if results else None

    def _on_signal(self, number: int, frame: Any) -> None:
        self.count += 1
