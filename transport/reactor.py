"""The events of one thread: calls that other threads post, timers, and sockets that can be read or written.

Knows nothing of what the calls do. A thread that computes waits here for its next work and reads its sockets itself, so
that what comes in wakes one thread and not two. To wake a thread that sleeps takes longer than most of what it is woken for, so
where processors are to spare it may look for ``spin_s`` before it sleeps. ``post`` and ``wake`` are for any thread, the rest for
the owner alone: whoever calls ``step``.
"""

import contextlib
import heapq
import itertools
import logging
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

logger = logging.getLogger(__name__)

Call = Callable[[], object]
_FOREVER_S = 3600.0
_LEAST_TIMERS = 128


@dataclass(slots=True, eq=False)
class Timer:
    call: Call | None

    def cancel(self) -> None:
        """What the call holds is let go at once, not when the time comes."""
        self.call = None


class Reactor:
    def __init__(self, spin_s: float = 0.0) -> None:
        self.num_events = 0  # of the step under way: sockets that had something
        self._spin_s = spin_s
        self._selector = selectors.DefaultSelector()
        self._posted: deque[tuple[Callable[..., object], tuple[object, ...]]] = deque()
        self._timers: list[tuple[float, int, Timer]] = []  # a heap
        self._sweep_at = _LEAST_TIMERS  # so many, and those cancelled are thrown out
        self._numbers = itertools.count()
        self._asleep = self._roused = False
        self._waking, self._woken = socket.socketpair()
        self._waking.setblocking(False)
        self._woken.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ, (self._on_wake, None))

    def post(self, call: Callable[..., object], *args: object) -> None:
        """``call(*args)`` on the owner's thread, soon."""
        self._posted.append((call, args))
        self.wake()

    def wake(self) -> None:
        """Ends the owner's wait, or keeps it from beginning one."""
        # The owner says that it sleeps before it looks whether it was roused, so one of both sees the other.
        self._roused = True
        if self._asleep:
            self._asleep = False
            with contextlib.suppress(BlockingIOError, OSError):  # full is awake enough; closed needs no waking
                self._waking.send(b"\0")

    def call_later(self, delay_s: float, call: Call) -> Timer:
        if len(self._timers) >= self._sweep_at:  # most deadlines are cancelled long before their time
            self._timers = [each for each in self._timers if each[2].call is not None]
            heapq.heapify(self._timers)
            self._sweep_at = max(_LEAST_TIMERS, 2 * len(self._timers))
        timer = Timer(call)
        heapq.heappush(self._timers, (time.monotonic() + delay_s, next(self._numbers), timer))
        return timer

    def watch(self, watched: socket.socket, readable: Call, writable: Call | None = None) -> None:
        """Until ``unwatch``, or watched again for something else."""
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if writable else 0)
        if watched.fileno() in self._selector.get_map():
            self._selector.modify(watched, events, (readable, writable))
        else:
            self._selector.register(watched, events, (readable, writable))

    def unwatch(self, watched: socket.socket) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(watched)

    def step(self, timeout_s: float | None = None) -> None:
        """Waits for the next event, at most ``timeout_s``, and runs all that there is; a call that fails is logged."""
        wait_s = self._wait_s(timeout_s)
        events = self._look(min(self._spin_s, wait_s)) if self._spin_s and wait_s else []
        if not events:
            self._asleep = True
            events = self._selector.select(0 if self._roused or self._posted else wait_s)
        self._asleep = self._roused = False
        self.num_events = len(events)
        for key, mask in events:
            readable, writable = key.data
            if mask & selectors.EVENT_READ:
                self._run(readable)
            if writable and mask & selectors.EVENT_WRITE:
                self._run(writable)
        while self._timers and self._timers[0][0] <= time.monotonic():
            timer = heapq.heappop(self._timers)[2]
            if timer.call is not None:
                self._run(timer.call)
        for _ in range(len(self._posted)):
            call, args = self._posted.popleft()
            self._run(call, args)

    def run(self, until: Callable[[], bool], timeout_s: float) -> bool:
        """Steps until ``until()``; whether that was within ``timeout_s``."""
        end = time.monotonic() + timeout_s
        while not until():
            if (left_s := end - time.monotonic()) <= 0:
                return False
            self.step(left_s)
        return True

    def close(self) -> None:
        """What is posted from now on is not run."""
        self._selector.close()
        self._waking.close()
        self._woken.close()

    def __del__(self) -> None:
        self.close()

    def _look(self, longest_s: float) -> list[tuple[selectors.SelectorKey, int]]:
        """What there is to do on sockets as soon as there is something, or nothing once somebody posted or the time is over."""
        ends_at = time.monotonic() + longest_s
        while not (self._roused or self._posted or time.monotonic() >= ends_at):
            if events := self._selector.select(0):
                return events
        return []

    def _wait_s(self, timeout_s: float | None) -> float:
        while self._timers and self._timers[0][2].call is None:
            heapq.heappop(self._timers)
        longest_s = _FOREVER_S if timeout_s is None else timeout_s
        return min(longest_s, max(0.0, self._timers[0][0] - time.monotonic())) if self._timers else longest_s

    def _on_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._woken.recv(4096)

    @staticmethod
    def _run(call: Callable[..., object], args: tuple[object, ...] = ()) -> None:
        try:
            call(*args)
        except Exception:
            logger.exception("a call on a worker's own thread failed")
