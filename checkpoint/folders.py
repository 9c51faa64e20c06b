"""A checkpoint's folders: a process's own, and perhaps one that it shares with others and that has what its own lacks.

Knows nothing of tensors. A file is read from a folder only if it begins there as it must, so two folders never mix two
checkpoints. All of it may be used from many threads.
"""

import hashlib
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from .errors import CheckpointError
from .file_headers import Head, RawHead, parse_head, read_head

_logger = logging.getLogger(__name__)


class Folders:
    """``paths`` in the order in which they are asked."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self.heads: dict[str, Head] = {}
        self._open: dict[Path, int] = {}
        self._faults: dict[Path, CheckpointError] = {}  # files that cannot be used
        self._told: set[str] = set()
        self._lock = threading.Lock()

    def find(self, files: Mapping[str, CheckpointError]) -> dict[str, CheckpointError]:
        """Reads the heads of ``files`` where they are; what remains is why a file is in none of the folders.

        Each file comes with the error of its being nowhere.
        """
        lacking: dict[str, CheckpointError] = {}
        num_missing = 0
        for file, nowhere in files.items():
            faults: list[CheckpointError] = []
            for path in (folder / file for folder in self.paths):
                if not path.exists():
                    continue
                try:
                    self.heads[file] = parse_head(path, read_head(path))
                    break
                except CheckpointError as error:
                    self._faults[path] = error
                    faults.append(error)
            if file not in self.heads:
                lacking[file] = faults[0] if faults else nowhere
            elif faults:
                self.tell(faults[0])
            if not (self.paths[0] / file).exists():
                num_missing += 1
                self._told.add(str(self.paths[0] / file))
        if num_missing:
            _logger.warning("%s lacks %d of %d files", self.paths[0], num_missing, len(files))
        return lacking

    def give(self, file: str, raw: RawHead) -> None:
        """The head of a file that no folder has. Raises CheckpointError."""
        self.heads[file] = parse_head(self.paths[0] / file, raw)

    def fill(self, number: int, file: str, name: str, start: int, destination: memoryview) -> None:
        """From one folder. Raises CheckpointError."""
        path, position = self.paths[number] / file, 0
        try:
            descriptor = self._descriptor(path)
            while position < len(destination):
                count = os.preadv(descriptor, [destination[position:]], start + position)
                if count == 0:
                    raise CheckpointError(path, name, f"truncated at byte {start + position}")
                position += count
        except OSError as error:
            raise CheckpointError(path, name, error.strerror or str(error)) from error

    def expect(self, number: int, file: str, start: int, num_bytes: int) -> None:
        """These bytes will soon be filled in: the system may read them meanwhile. Raises CheckpointError or OSError."""
        descriptor = self._descriptor(self.paths[number] / file)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, start, num_bytes, os.POSIX_FADV_WILLNEED)

    def tell(self, fault: CheckpointError) -> None:
        """That another source has to be asked: once for every file."""
        with self._lock:
            is_new = fault.file not in self._told
            self._told.add(fault.file)
        if is_new:
            _logger.warning("%s; it is read from elsewhere", fault)

    def close(self) -> None:
        with self._lock:
            for descriptor in self._open.values():
                os.close(descriptor)
            self._open.clear()

    def _descriptor(self, path: Path) -> int:
        with self._lock:
            if path in self._faults:
                raise self._faults[path]
            if path not in self._open:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    self._check_head(path, descriptor)
                except (CheckpointError, OSError):
                    os.close(descriptor)
                    raise
                self._open[path] = descriptor
            return self._open[path]

    def _check_head(self, path: Path, descriptor: int) -> None:
        """A file may have been replaced, and the other folder's was not looked at yet."""
        head = self.heads[path.name]
        num_bytes = head.header.data_start + len(head.sample)
        if hashlib.sha256(os.pread(descriptor, num_bytes, 0)).digest() != head.digest:
            self._faults[path] = CheckpointError(path, "", "is not the file of this checkpoint: it begins otherwise")
            raise self._faults[path]
