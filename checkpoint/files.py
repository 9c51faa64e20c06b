"""A checkpoint's files by byte range: which tensor lies where, and the bytes that a process asks for, and no others.

Knows nothing of torch or of what a tensor is for. 1. ``open`` reads the configuration, the index and each file's head,
and nothing else; 2. ``read_bytes`` copies from a file (no mapping, so a checkpoint replaced on disk can never change a
served weight) in one of its folders; 3. ``ranges_read`` tells what was read. All of it may be used from many threads.
"""

import contextlib
import hashlib
import json
import threading
from collections.abc import Collection, Iterator
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

from .errors import CheckpointError
from .file_headers import SAMPLE_BYTES, AskHeads
from .folders import Folders
from .json_object import optional, read_json_object
from .mistakes import folder_lacks, folder_lacks_index, tensor_is
from .model_config import CONFIG_FILE, ModelConfig
from .safetensors_header import TensorInfo
from .tensor_names import expert_projections

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
# So many ranges are kept as they came before they are merged.
_FIRST_MERGE = 1024


class CheckpointFiles:
    """``is_partial``: some of its files are in no folder, only their heads are known."""

    def __init__(self, config: ModelConfig, folders: Folders, is_partial: bool = False) -> None:
        self.directory = folders.paths[0]
        self.config = config
        self.is_partial = is_partial
        self.headers = {file: head.header for file, head in folders.heads.items()}
        self.tensors: dict[str, TensorInfo] = {}
        for file, header in self.headers.items():
            for name, info in header.tensors.items():
                if name in self.tensors:
                    raise CheckpointError(self.directory / file, name, f"lies in {self.tensors[name].file} as well")
                self.tensors[name] = info
        self._folders = folders
        self._lock = threading.Lock()
        self._ranges: list[tuple[str, int, int]] = []
        self._merge_at = _FIRST_MERGE

    @classmethod
    def open(cls, directory: Path, shared: Path | None = None, ask: AskHeads | None = None) -> Self:
        """``shared`` is read where ``directory`` lacks a file, or one cannot be read; configuration and index lie in ``directory``.

        Files that neither has are an error, unless somebody can be asked what is in them.
        """
        config = ModelConfig.from_dir(directory)
        if shared is not None and not shared.is_dir():
            raise CheckpointError(shared, "", "is not a directory")
        folders = Folders((directory,) if shared is None else (directory, shared))
        lacking = folders.find(_expected(directory, folders))
        if lacking:
            if ask is None:
                raise next(iter(lacking.values()))
            for fault in lacking.values():
                folders.tell(fault)
            for file, raw in ask(list(lacking)).items():
                folders.give(file, raw)
        _check_index(directory, folders)
        return cls(config, folders, bool(lacking))

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 over the configuration, the tensor table, the file sizes and the first bytes of each file."""
        digest = hashlib.sha256()
        config = read_json_object(self.directory / CONFIG_FILE).data
        digest.update(json.dumps(config, sort_keys=True).encode())
        for name in sorted(self.tensors):
            info = self.tensors[name]
            digest.update(f"\n{name} {info.dtype} {info.shape}".encode())
        for _, head in sorted(self._folders.heads.items()):
            digest.update(f"\n{head.header.file_bytes} ".encode())
            digest.update(head.sample)
        return digest.hexdigest()

    def info(self, name: str) -> TensorInfo:
        try:
            return self.tensors[name]
        except KeyError:
            raise no_tensor(self.directory, name, self.tensors) from None

    def expert_names(self, layer: int, expert: int) -> tuple[tuple[str, str], ...]:
        """``(packed, scale)`` for gate, up and down."""
        return tuple((item.packed, item.scale) for item in expert_projections(self.config, layer, expert))

    @property
    def num_folders(self) -> int:
        """1, or 2 with a shared one."""
        return len(self._folders.paths)

    def read_bytes(self, name: str, start: int, destination: memoryview, folder: int | None = None) -> None:
        """Fills ``destination`` from byte ``start`` of the file that holds ``name``; it may run on into others.

        From the first folder that can give it, or from one alone. Raises CheckpointError.
        """
        file = self.info(name).file
        for number in range(self.num_folders) if folder is None else (folder,):
            try:
                self._folders.fill(number, file, name, start, destination)
                break
            except CheckpointError as error:
                if folder is not None or number + 1 == self.num_folders:
                    raise
                self.tell(error)
        with self._lock:
            self._ranges.append((file, start, start + len(destination)))
            if len(self._ranges) >= self._merge_at:  # a shard may read the same experts again and again
                self._ranges = list(_merged(self._ranges))
                self._merge_at = 2 * len(self._ranges) + _FIRST_MERGE

    def expect(self, name: str) -> None:
        """``name`` will soon be read: its bytes begin to come from the first folder that has them, while others are worked on."""
        for number in range(self.num_folders):
            with contextlib.suppress(CheckpointError, OSError):  # who reads it is told
                info = self.info(name)
                self._folders.expect(number, info.file, info.start, info.num_bytes)
                return

    def tell(self, fault: CheckpointError) -> None:
        """That what could not be read has to come from elsewhere; once for every file."""
        self._folders.tell(fault)

    @property
    def ranges_read(self) -> list[tuple[str, int, int]]:
        """Sorted, merged ``(file, start, end)`` of all tensor bytes that this process read, in file offsets."""
        with self._lock:
            self._ranges = list(_merged(self._ranges))
            return list(self._ranges)

    @property
    def header_ranges(self) -> list[tuple[str, int, int]]:
        """What ``open`` and ``fingerprint`` read of every file besides."""
        return [
            (file, 0, min(header.data_start + SAMPLE_BYTES, header.file_bytes))
            for file, header in sorted(self.headers.items())
        ]

    def close(self) -> None:
        self._folders.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def files_of(directory: Path) -> set[str]:
    """The names of a checkpoint's safetensors files. Raises CheckpointError."""
    index = directory / INDEX_FILE
    return set(read_index(index).values()) if optional(index) else {SINGLE_FILE}


def read_index(index: Path) -> dict[str, str]:
    """Tensor to file, in the index's order; every file is one that can only lie beside the index."""
    weight_map = read_json_object(index).object("weight_map")
    placed = {name: weight_map.text(name) for name in weight_map.data}
    first_tensors: dict[str, str] = {}
    for name, file in placed.items():
        first_tensors.setdefault(file, name)
    for file, name in first_tensors.items():
        if Path(file).name != file or not file.endswith(".safetensors") or not file.isprintable():
            raise CheckpointError(index, name, f"{file!r} is not the name of a safetensors file beside the index")
    return placed


def no_tensor(place: Path, name: str, names: Collection[str]) -> CheckpointError:
    """That ``name`` is not among the checkpoint's ``names``."""
    return CheckpointError(place, name, "is in no file of the checkpoint", tensor_is(name, names))


def _expected(directory: Path, folders: Folders) -> dict[str, CheckpointError]:
    """The checkpoint's files, each with the error that it is if no folder has it."""
    index = directory / INDEX_FILE
    if not optional(index):
        nothing = CheckpointError(
            directory, "", f"holds neither {INDEX_FILE} nor {SINGLE_FILE}", folder_lacks_index(directory)
        )
        if not any((folder / SINGLE_FILE).exists() for folder in folders.paths):
            raise nothing
        return {SINGLE_FILE: nothing}
    places = " or ".join(map(str, folders.paths))
    errors: dict[str, CheckpointError] = {}
    for name, file in read_index(index).items():
        if file not in errors:
            nowhere = f"lies in {file}, which does not exist in {places}"
            errors[file] = CheckpointError(index, name, nowhere, folder_lacks(directory / file))
    return errors


def _check_index(directory: Path, folders: Folders) -> None:
    index = directory / INDEX_FILE
    for name, file in read_index(index).items() if index.exists() else ():
        if name not in folders.heads[file].header.tensors:
            raise CheckpointError(directory / file, name, f"missing, although {index.name} places it here")


def _merged(ranges: list[tuple[str, int, int]]) -> Iterator[tuple[str, int, int]]:
    current: tuple[str, int, int] | None = None
    for file, start, end in sorted(ranges):
        if current and current[0] == file and start <= current[2]:
            current = (file, current[1], max(current[2], end))
            continue
        if current:
            yield current
        current = (file, start, end)
    if current:
        yield current
