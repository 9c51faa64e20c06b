"""What a checkpoint's files begin with, for processes that lack some of them.

Knows nothing of who asks. Nothing is read before somebody does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from .errors import CheckpointError
from .file_headers import RawHead, read_head
from .files import files_of


@dataclass(frozen=True)
class Outline:
    """Of the checkpoint in ``directory``, whose missing files ``shared`` has."""

    directory: Path
    shared: Path | None = None

    def heads(self, files: Sequence[str]) -> dict[str, RawHead]:
        """Raises CheckpointError for what is no file of the checkpoint, or cannot be read."""
        for file in files:
            if file not in self._known:
                raise CheckpointError(self.directory, file, "is no file of the checkpoint")
        return {file: self._read(file) for file in files}

    @cached_property
    def _known(self) -> set[str]:
        return files_of(self.directory)

    def _read(self, file: str) -> RawHead:
        folders = (self.directory,) if self.shared is None else (self.directory, self.shared)
        faults: list[CheckpointError] = []
        for folder in folders:
            try:
                return read_head(folder / file)
            except CheckpointError as error:
                faults.append(error)
        raise faults[-1]
