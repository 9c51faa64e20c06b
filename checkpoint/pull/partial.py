"""A file that is not whole yet: ``NAME.partial``, and beside it ``NAME.partial.etag``, the version its bytes are of.

Knows nothing of HTTP. Whatever moment a process is killed in, the bytes here are the beginning of that version, or the
ETag beside them is none that a server will continue. Only one process at a time may have it open.
"""

import errno
import fcntl
import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path

from .errors import PullError

_BLOCK_BYTES = 1 << 20
# Dropped when an earlier process's bytes are continued: a machine that lost power may not have written its last ones.
# At least one byte must go, for a range that begins at the end is none.
_TAIL_BYTES = 1 << 20
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
STRONG_ETAG = re.compile(r'"[\x21\x23-\x7e]*"')


class Partial:
    def __init__(self, directory: Path, name: str, say: Callable[[str], None]) -> None:
        self._target = directory / name
        self._path = directory / f"{name}.partial"
        self._etag_path = directory / f"{name}.partial.etag"
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            self._lock(say)
            self._continue()
        except BaseException:
            os.close(self._descriptor)
            raise

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def append(self, content: bytes) -> None:
        remaining = memoryview(content)
        while remaining:
            remaining = remaining[os.pwrite(self._descriptor, remaining, self.size + len(content) - len(remaining)) :]
        self._digest.update(content)
        self.size += len(content)

    def restart(self, etag: str) -> None:
        """Empty, and of the version ``etag`` (empty if it cannot be continued later)."""
        os.ftruncate(self._descriptor, 0)
        # Never may the new ETag stand beside the old bytes.
        os.fsync(self._descriptor)
        self._etag_path.unlink(missing_ok=True)
        if etag:
            self._etag_path.write_text(etag, encoding="ascii")
        self.size, self.etag, self._digest = 0, etag, hashlib.sha256()

    def finish(self) -> None:
        """Takes its name, for good."""
        os.fsync(self._descriptor)
        os.replace(self._path, self._target)
        self._etag_path.unlink(missing_ok=True)
        folder = os.open(self._target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def discard(self) -> None:
        self._etag_path.unlink(missing_ok=True)
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        os.close(self._descriptor)

    def _lock(self, say: Callable[[str], None]) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PullError(f"{self._path}: another process is pulling it") from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            say(f"{self._path}: this file system has no locks; let no second pull write here")
        # The one who held the lock may have finished it in the meantime.
        if not self._path.exists() or not os.path.samestat(os.fstat(self._descriptor), self._path.stat()):
            raise PullError(f"{self._path}: another process has just pulled it")

    def _continue(self) -> None:
        self.size, self.etag, self._digest = 0, "", hashlib.sha256()
        found = self._etag_path.read_text(encoding="ascii", errors="replace") if self._etag_path.exists() else ""
        kept = max(0, os.fstat(self._descriptor).st_size - _TAIL_BYTES)
        if not kept or not STRONG_ETAG.fullmatch(found):
            self.restart("")
            return
        os.ftruncate(self._descriptor, kept)
        while block := os.pread(self._descriptor, _BLOCK_BYTES, self.size):
            self._digest.update(block)
            self.size += len(block)
        self.etag = found


def kept_bytes(directory: Path, name: str) -> int:
    """Bytes on disk of a file that is not whole yet."""
    path = directory / f"{name}.partial"
    return path.stat().st_size if path.exists() else 0
