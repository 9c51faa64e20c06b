"""A controller's number among all that a fleet has had: greater than every earlier one's.

Knows nothing of controllers. It is the time in milliseconds, or, where the clock is behind, one more than the last number that was kept.
"""

import logging
import time
from pathlib import Path

from ..atomic_file import write_whole

_log = logging.getLogger(__name__)


def next_incarnation(file: Path | None) -> int:
    """Kept in ``file``, if there is one. Raises ValueError for a file that is not one of ours."""
    now = time.time_ns() // 1_000_000
    if file is None:
        return now
    number = max(now, _last(file) + 1)
    try:
        write_whole(file, str(number))
    except OSError as error:
        _log.warning("%s cannot be written (%s); the next controller has the clock alone", file, error.strerror)
    return number


def _last(file: Path) -> int:
    try:
        return int(file.read_text())
    except FileNotFoundError:
        return 0
    except ValueError as error:
        raise ValueError(f"{file}: is not the number of a controller ({error})") from error
