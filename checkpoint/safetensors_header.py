"""The header of a safetensors file: which tensor lies in which bytes. Reads and writes it; never a tensor.

Knows nothing of models. Layout: eight bytes little-endian header length N, N bytes of JSON, then the data. A file is
accepted only if its tensors cover the data without gap or overlap and each range has the size of its shape and dtype.
"""

import json
import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from .errors import CheckpointError
from .json_object import JsonObject, parse_json_object
from .mistakes import START_BYTES, text_is

ITEM_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E4M3FNUZ": 1,
    "F8_E5M2FNUZ": 1,
    "F8_E8M0": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
    "C64": 8,
}
MAX_HEADER_BYTES = 100_000_000
_LENGTH = struct.Struct("<Q")
_MAX_DIMENSION = 1 << 48


class TensorInfo(NamedTuple):
    """``start`` and ``end`` are offsets in the file, header included."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def num_bytes(self) -> int:
        return self.end - self.start


class Header(NamedTuple):
    tensors: dict[str, TensorInfo]
    data_start: int
    file_bytes: int


def read_header(path: Path) -> Header:
    return parse_header(path, *read_start(path, 0))


def read_start(path: Path, num_more: int) -> tuple[bytes, int]:
    """The header, at most ``num_more`` bytes of the data behind it, and the file's size. Raises CheckpointError."""
    try:
        file_bytes = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(START_BYTES)
            wanted = _LENGTH.size + _header_bytes(path, start, file_bytes) + num_more
            return start[:wanted] + file.read(max(0, wanted - len(start))), file_bytes
    except OSError as error:
        raise CheckpointError(path, "", error.strerror or str(error)) from error


def parse_header(path: Path, start: bytes, file_bytes: int) -> Header:
    """From what a file of ``file_bytes`` starts with. Raises CheckpointError."""
    length = _header_bytes(path, start, file_bytes)
    data_start = _LENGTH.size + length
    if len(start) < data_start:
        raise CheckpointError(path, "", f"truncated: {file_bytes} bytes, its header alone needs {data_start}")
    entries = parse_json_object(start[_LENGTH.size : data_start], str(path))
    entries.pop("__metadata__", None)
    tensors = {name: _entry(path, name, entry, data_start) for name, entry in entries.items()}
    _check_cover(path, tensors, data_start, file_bytes)
    return Header(tensors, data_start, file_bytes)


def _header_bytes(path: Path, start: bytes, file_bytes: int) -> int:
    if len(start) < _LENGTH.size:
        problem = f"truncated: {file_bytes} bytes, a header needs {_LENGTH.size}"
        raise CheckpointError(path, "", problem, text_is(start))
    length = int(_LENGTH.unpack_from(start)[0])
    # NOTE: between these limits any first bytes are a length, also those by which other files are known.
    if not 0 < length <= MAX_HEADER_BYTES:
        raise CheckpointError(path, "", text_is(start) or f"header of {length} bytes, limit {MAX_HEADER_BYTES}")
    return length


def encode_header(tensors: Sequence[tuple[str, str, tuple[int, ...]]]) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """The header for ``(name, dtype, shape)`` laid out in this order, and each tensor's file range."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, dtype, shape in tensors:
        end = position + math.prod(shape) * ITEM_BYTES[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    content = json.dumps(entries, separators=(",", ":")).encode()
    content += b" " * (-len(content) % 8)
    header = _LENGTH.pack(len(content)) + content
    ranges = {}
    position = len(header)
    for name, dtype, shape in tensors:
        end = position + math.prod(shape) * ITEM_BYTES[dtype]
        ranges[name] = (position, end)
        position = end
    return header, ranges


def _entry(path: Path, name: str, entry: object, data_start: int) -> TensorInfo:
    if not isinstance(entry, dict):
        raise CheckpointError(path, name, f"must be an object, is {entry!r}")
    source = JsonObject(str(path), entry, f"{name}: ")
    dtype = source.text("dtype")
    if dtype not in ITEM_BYTES:
        raise source.error("dtype", f"{dtype!r} is not known")
    shape = _integers(source, "shape")
    offsets = _integers(source, "data_offsets")
    if len(offsets) != 2 or offsets[1] < offsets[0]:
        raise source.error("data_offsets", f"{offsets} must be [start, end]")
    needed = math.prod(shape) * ITEM_BYTES[dtype]
    if offsets[1] - offsets[0] != needed:
        problem = f"{offsets} spans {offsets[1] - offsets[0]} bytes, {dtype} {list(shape)} needs {needed}"
        raise source.error("data_offsets", problem)
    return TensorInfo(path.name, dtype, shape, data_start + offsets[0], data_start + offsets[1])


def _integers(source: JsonObject, key: str) -> tuple[int, ...]:
    values = source.items(key)
    for value in values:
        if type(value) is not int or not 0 <= value < _MAX_DIMENSION:
            raise source.error(key, f"holds {value!r}, must hold whole numbers from 0 to {_MAX_DIMENSION - 1}")
    return tuple(values)


def _check_cover(path: Path, tensors: dict[str, TensorInfo], data_start: int, file_bytes: int) -> None:
    position = data_start
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if info.end > file_bytes:
            raise CheckpointError(path, name, f"truncated: ends at byte {info.end}, the file has {file_bytes}")
        if info.start != position:
            kind = "overlaps the tensor before it" if info.start < position else "leaves a gap before it"
            raise CheckpointError(path, name, f"{kind}: starts at byte {info.start}, expected {position}")
        position = info.end
    if position != file_bytes:
        raise CheckpointError(path, "", f"{file_bytes - position} bytes after the last tensor belong to none")
