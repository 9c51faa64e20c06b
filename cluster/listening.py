"""Whether a server that was once heard still listens at its port; one that ended its port but not itself is deaf.

Knows nothing of what it serves. A server that was stopped by SIGSTOP, or is slow, is not deaf: its port still takes connections.
"""

import contextlib
import socket
import time
from collections.abc import Callable

_EVERY_S = 1.0
_DEAF_S = 5.0
_CONNECT_S = 0.5


def listens(address: str) -> bool:
    """``address`` is HOST:PORT; where nobody can tell in time the answer is yes."""
    host, _, port = address.rpartition(":")
    try:
        with contextlib.closing(socket.create_connection((host, int(port)), _CONNECT_S)):
            return True
    except TimeoutError:
        return True
    except OSError:
        return False


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
