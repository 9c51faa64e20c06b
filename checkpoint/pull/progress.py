"""One line now and then: how much of how much, how fast, how long still.

Knows nothing of files. Bytes that were there before count as done and not as speed. May be used from many threads.
"""

import threading
import time
from collections.abc import Callable

_INTERVAL_S = 10.0


class Progress:
    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._say = say
        self._clock = clock
        self._lock = threading.Lock()
        self._total = 0
        self._done = 0
        self._said_at = clock()
        self._received_since = 0
        self.received = 0

    def expect(self, count: int) -> None:
        with self._lock:
            self._total += count

    def keep(self, count: int) -> None:
        with self._lock:
            self._done += count

    def receive(self, count: int) -> None:
        """A negative count gives bytes up."""
        with self._lock:
            self._done += count
            if count > 0:
                self.received += count
                self._received_since += count
            elapsed_s = self._clock() - self._said_at
            if elapsed_s >= _INTERVAL_S:
                self._say(self._line(self._received_since / elapsed_s))
                self._said_at, self._received_since = self._clock(), 0

    def _line(self, rate: float) -> str:
        """Without a total where a server names no sizes."""
        done, left = f"{self._done / 1e9:.2f}", self._total - self._done
        if left < 0:
            return f"{done} GB, {rate / 1e6:.1f} MB/s"
        line = f"{done} of {self._total / 1e9:.2f} GB, {rate / 1e6:.1f} MB/s"
        return f"{line}, {duration(left / rate)} left" if rate else line


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
