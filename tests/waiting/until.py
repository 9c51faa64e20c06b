"""Waiting for what comes true in its own time."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
_POLL_S = 0.02


def until(condition: Callable[[], T], timeout_s: float, what: str = "") -> T:
    """What ``condition`` gives as soon as that is true; fails with ``what`` after ``timeout_s``."""
    give_up = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < give_up, f"not within {timeout_s} s: {what}"
        time.sleep(_POLL_S)
    return value
