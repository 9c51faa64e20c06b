"""What a gateway does once nothing has run for a moment: it gives back the memory that it does not need.

Knows nothing of what runs. Collecting garbage holds up everybody for tens of milliseconds, so it is not done while an answer is under
way; without it, free memory is scattered and grows with the number of requests.
"""

import asyncio
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..settings.heap import return_free_memory

_AFTER_S = 0.5


def give_back_memory() -> None:
    gc.collect()
    return_free_memory()


class Idle:
    """Calls ``call`` when what ran has ended and nothing has begun for ``after_s``; belongs to one event loop."""

    def __init__(self, call: Callable[[], None] = give_back_memory, after_s: float = _AFTER_S) -> None:
        self._call, self._after_s = call, after_s
        self._num_running = 0
        self._timer: asyncio.TimerHandle | None = None

    @contextmanager
    def busy(self) -> Iterator[None]:
        self._num_running += 1
        if self._timer is not None:
            self._timer.cancel()
        try:
            yield
        finally:
            self._num_running -= 1
            if not self._num_running:
                self._timer = asyncio.get_running_loop().call_later(self._after_s, self._call)
