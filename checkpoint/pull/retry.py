"""Tries one thing again and again: growing pauses, a server's own wish for a longer one, and an end.

Knows nothing of HTTP or files. ``progressed`` forgets the failures so far, so a transfer of hours may be broken off
more often than one that brings nothing.
"""

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from .errors import PullError, TransientError

_LONGEST_PAUSE_S = 60.0
_LONGEST_WISH_S = 300.0

T = TypeVar("T")


@dataclass(frozen=True)
class RetryPolicy:
    tries: int = 6
    first_pause_s: float = 1.0


class Retries:
    def __init__(self, policy: RetryPolicy, stop: threading.Event, say: Callable[[str], None]) -> None:
        self._policy = policy
        self._stop = stop
        self._say = say
        self._failures = 0

    def run(self, attempt: Callable[[], T]) -> T:
        while True:
            try:
                return attempt()
            except TransientError as error:
                self._pause(error)

    def progressed(self) -> None:
        self._failures = 0

    def _pause(self, error: TransientError) -> None:
        self._failures += 1
        if self._failures == self._policy.tries:
            raise PullError(f"{error}; given up after {self._failures} tries")
        pause_s = min(self._policy.first_pause_s * 2 ** (self._failures - 1), _LONGEST_PAUSE_S)
        # Many volumes are filled at once: they shall not all come back in the same moment.
        pause_s = max(pause_s * random.uniform(0.5, 1.0), min(error.pause_s, _LONGEST_WISH_S))
        self._say(f"{error}; try {self._failures + 1} of {self._policy.tries} in {pause_s:.1f} s")
        if self._stop.wait(pause_s):
            raise PullError("stopped")
