"""Whether a server that was once heard still listens at its port; one that ended its port but not itself is deaf.

Knows nothing of ports and of what is served. A server that was stopped by SIGSTOP, or is slow, is not deaf: its port still takes connections.
"""

import time
from collections.abc import Callable

_EVERY_S = 1.0
_DEAF_S = 5.0


class Listening:
    def __init__(self, is_heard: Callable[[], bool], clock: Callable[[], float] = time.monotonic) -> None:
        self._is_heard, self._clock = is_heard, clock
        self.forget()

    def forget(self) -> None:
        """Another process takes the port."""
        self._heard_at: float | None = None
        self._look_at = self._clock()

    def is_deaf(self) -> bool:
        """Asks at most once a second; True once nobody has listened for five seconds where somebody did."""
        now = self._clock()
        if now >= self._look_at:
            self._look_at = now + _EVERY_S
            if self._is_heard():
                self._heard_at = now
        return self._heard_at is not None and now - self._heard_at > _DEAF_S
