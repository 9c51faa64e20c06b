"""The keys that clients must present: those given at the start, and those of a file that is read again when it changes.

Knows nothing of HTTP. A file that cannot be read or holds no key changes nothing: nobody gets in without a key because of it.
"""

import hmac
import logging
import time
from pathlib import Path

_log = logging.getLogger(__name__)
# A Kubernetes secret takes about a minute to reach the file anyway.
_LOOK_S = 1.0


def all_keys(given: tuple[str, ...], path: Path | None) -> tuple[str, ...]:
    """Those ``given`` and the file's, which stand on lines of their own or with commas between. Raises ValueError."""
    if path is None:
        return given
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"api_key_file: {path}: {getattr(error, 'strerror', None) or error}") from error
    keys = tuple(key for line in text.splitlines() for part in line.split(",") if (key := part.strip()))
    if not keys:
        raise ValueError(f"api_key_file: {path} holds no key")
    return (*given, *keys)


class ApiKeys:
    """Raises ValueError for a ``file`` without keys."""

    def __init__(self, given: tuple[str, ...], file: Path | None) -> None:
        self._given, self._file = given, file
        self._stamp = self._stamped()
        self._keys = all_keys(given, file)
        self._look_at = time.monotonic() + _LOOK_S

    @property
    def any(self) -> bool:
        """Whether a key is needed at all; never changes."""
        return bool(self._keys)

    def accepts(self, key: str) -> bool:
        self._look()
        # NOTE: every key is compared, so that the time taken tells nothing.
        matches = [hmac.compare_digest(key.encode(), each.encode()) for each in self._keys]
        return any(matches)

    def _look(self) -> None:
        if self._file is None or time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + _LOOK_S
        if (stamp := self._stamped()) == self._stamp:
            return
        self._stamp = stamp
        try:
            self._keys = all_keys(self._given, self._file)
        except ValueError as error:
            _log.warning("the API keys stay as they were: %s", error)
        else:
            _log.info("%s was read again: %d API keys are good", self._file, len(self._keys))

    def _stamped(self) -> tuple[int, int, int] | None:
        """Changes with the file."""
        if self._file is None:
            return None
        try:
            seen = self._file.stat()
        except OSError:
            return None
        return seen.st_ino, seen.st_size, seen.st_mtime_ns
