"""A checkpoint's files by byte range: which tensor lies where, and the bytes that a process asks for, and no others.

Knows nothing of torch or of what a tensor is for. 1. ``open`` reads the configuration, the index and each file's header,
and nothing else; 2. ``read_bytes`` copies from a file (no mapping, so a checkpoint replaced on disk can never change a
served weight); 3. ``ranges_read`` tells what was read. All of it may be used from many threads.
"""

import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

from .errors import CheckpointError
from .json_object import read_json_object
from .layout import expert_projections
from .model_config import CONFIG_FILE, ModelConfig
from .safetensors_header import Header, TensorInfo, read_header

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
# Bytes of each file's data that enter the fingerprint: two fine-tunes of one model have equal names and shapes.
_SAMPLE_BYTES = 4096
# So many ranges are kept as they came before they are merged.
_FIRST_MERGE = 1024


class CheckpointFiles:
    def __init__(self, directory: Path, config: ModelConfig, headers: Mapping[str, Header]) -> None:
        self.directory = directory
        self.config = config
        self.headers = dict(headers)
        self.tensors: dict[str, TensorInfo] = {}
        for file, header in headers.items():
            for name, info in header.tensors.items():
                if name in self.tensors:
                    raise CheckpointError(directory / file, name, f"lies in {self.tensors[name].file} as well")
                self.tensors[name] = info
        self._files: dict[str, int] = {}
        self._lock = threading.Lock()
        self._ranges: list[tuple[str, int, int]] = []
        self._merge_at = _FIRST_MERGE

    @classmethod
    def open(cls, directory: Path) -> Self:
        config = ModelConfig.from_dir(directory)
        index = directory / INDEX_FILE
        if index.exists():
            return cls(directory, config, _read_indexed(directory, index))
        if (directory / SINGLE_FILE).exists():
            return cls(directory, config, {SINGLE_FILE: read_header(directory / SINGLE_FILE)})
        raise CheckpointError(directory, "", f"holds neither {INDEX_FILE} nor {SINGLE_FILE}")

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 over the configuration, the tensor table, the file sizes and the first bytes of each file."""
        digest = hashlib.sha256()
        config = read_json_object(self.directory / CONFIG_FILE).data
        digest.update(json.dumps(config, sort_keys=True).encode())
        for name in sorted(self.tensors):
            info = self.tensors[name]
            digest.update(f"\n{name} {info.dtype} {info.shape}".encode())
        for file in sorted(self.headers):
            header = self.headers[file]
            digest.update(f"\n{header.file_bytes} ".encode())
            sample = bytearray(min(_SAMPLE_BYTES, header.file_bytes - header.data_start))
            self._fill(file, "", header.data_start, memoryview(sample))
            digest.update(sample)
        return digest.hexdigest()

    def info(self, name: str) -> TensorInfo:
        try:
            return self.tensors[name]
        except KeyError:
            raise CheckpointError(self.directory, name, "is in no file of the checkpoint") from None

    def expert_names(self, layer: int, expert: int) -> tuple[tuple[str, str], ...]:
        """``(packed, scale)`` for gate, up and down."""
        return tuple((item.packed, item.scale) for item in expert_projections(self.config, layer, expert))

    def read_bytes(self, name: str, start: int, destination: memoryview) -> None:
        """Fills ``destination`` from byte ``start`` of the file that holds ``name``; it may run on into others."""
        file = self.info(name).file
        self._fill(file, name, start, destination)
        with self._lock:
            self._ranges.append((file, start, start + len(destination)))
            if len(self._ranges) >= self._merge_at:  # a shard may read the same experts again and again
                self._ranges = list(_merged(self._ranges))
                self._merge_at = 2 * len(self._ranges) + _FIRST_MERGE

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
            (file, 0, min(header.data_start + _SAMPLE_BYTES, header.file_bytes))
            for file, header in sorted(self.headers.items())
        ]

    def close(self) -> None:
        with self._lock:
            for descriptor in self._files.values():
                os.close(descriptor)
            self._files.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _fill(self, file: str, name: str, start: int, destination: memoryview) -> None:
        position = 0
        try:
            descriptor = self._descriptor(file)
            while position < len(destination):
                count = os.preadv(descriptor, [destination[position:]], start + position)
                if count == 0:
                    raise CheckpointError(self.directory / file, name, f"truncated at byte {start + position}")
                position += count
        except OSError as error:
            raise CheckpointError(self.directory / file, name, error.strerror or str(error)) from error

    def _descriptor(self, file: str) -> int:
        with self._lock:
            if file not in self._files:
                self._files[file] = os.open(self.directory / file, os.O_RDONLY | os.O_CLOEXEC)
            return self._files[file]


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


def _read_indexed(directory: Path, index: Path) -> dict[str, Header]:
    headers: dict[str, Header] = {}
    for name, file in read_index(index).items():
        if file not in headers:
            if not (directory / file).exists():
                raise CheckpointError(index, name, f"lies in {file}, which does not exist in {directory}")
            headers[file] = read_header(directory / file)
        if name not in headers[file].tensors:
            raise CheckpointError(directory / file, name, f"missing, although {index.name} places it here")
    return headers


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
