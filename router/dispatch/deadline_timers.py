"""Deadlines of many waits on one timer, as most of them end long before their time.

Knows nothing of what is waited for. Belongs to the reactor's thread.
"""

import math
import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from ...transport.reactor import Reactor, Timer

T = TypeVar("T", bound=Hashable)


class DeadlineTimers(Generic[T]):
    """``call`` is called with whatever has waited until its time, which then waits no more."""

    def __init__(self, reactor: Reactor, call: Callable[[T], object]) -> None:
        self._reactor, self._call = reactor, call
        self._ends: dict[T, float] = {}
        self._timer: Timer | None = None
        self._timer_at = math.inf

    def __len__(self) -> int:
        return len(self._ends)

    def end_at(self, waiting: T, at: float) -> None:
        """By ``time.monotonic``; instead of what was said of it before."""
        self._ends[waiting] = at
        if at < self._timer_at:
            self._arm(at)

    def forget(self, waiting: T) -> None:
        self._ends.pop(waiting, None)

    def _arm(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._reactor.call_later(max(0.0, at - time.monotonic()), self._look)

    def _look(self) -> None:
        self._timer, self._timer_at = None, math.inf
        now = time.monotonic()
        try:
            for waiting in [waiting for waiting, at in self._ends.items() if at <= now]:
                if self._ends.get(waiting, math.inf) <= now:  # nobody before it has changed that
                    del self._ends[waiting]
                    self._call(waiting)
        finally:  # whoever comes after one that failed does so in the next step
            if self._ends and (first := min(self._ends.values())) < self._timer_at:
                self._arm(first)
