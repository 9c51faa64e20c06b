import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from expertfleet.checkpoint.errors import CheckpointError
from expertfleet.checkpoint.safetensors_header import MAX_HEADER_BYTES, encode_header, read_header


def write(path: Path, entries: dict[str, Any], data: bytes) -> Path:
    content = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(content)) + content + data)
    return path


def entry(start: int, end: int, shape: list[int], dtype: str = "BF16") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def test_a_library_written_file_is_read(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    arrays = {
        "a": random.normal(size=(3, 5)).astype(np.float32),
        "b": random.integers(0, 9, (2, 0)),
        "c": random.integers(0, 9, ()).astype(np.int32),
    }
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file(arrays, path, metadata={"format": "pt"})
    header = read_header(path)
    content = path.read_bytes()
    assert set(header.tensors) == set(arrays)
    for name, array in arrays.items():
        info = header.tensors[name]
        assert info.shape == array.shape
        assert content[info.start : info.end] == array.tobytes()


def test_a_written_header_is_read_by_the_library(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    arrays = {"w": random.normal(size=(4, 3)).astype(np.float32), "s": random.integers(0, 9, 2).astype(np.int32)}
    header, ranges = encode_header([("w", "F32", (4, 3)), ("s", "I32", (2,))])
    assert len(header) % 8 == 0
    path = tmp_path / "x.safetensors"
    path.write_bytes(header + arrays["w"].tobytes() + arrays["s"].tobytes())
    loaded = safetensors.numpy.load_file(path)
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name], array)
        info = read_header(path).tensors[name]
        assert (info.start, info.end) == ranges[name]


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E8M0", "F8_E5M2FNUZ", "C64"])
def test_a_dtype_that_is_not_served_can_still_be_named(tmp_path: Path, dtype: str) -> None:
    size = 8 if dtype == "C64" else 1
    path = write(tmp_path / "x.safetensors", {"a": entry(0, 4 * size, [4], dtype)}, bytes(4 * size))
    assert read_header(path).tensors["a"].dtype == dtype


@pytest.mark.parametrize("length", [0, 3, 8, 20, 200])
def test_a_file_cut_anywhere_is_truncated(tmp_path: Path, length: int) -> None:
    path = write(tmp_path / "x.safetensors", {"first": entry(0, 8, [4]), "second": entry(8, 160, [76])}, bytes(160))
    whole = path.read_bytes()
    assert len(whole) > 200
    path.write_bytes(whole[:length])
    with pytest.raises(CheckpointError, match="truncated") as caught:
        read_header(path)
    assert str(path) in str(caught.value)
    if length == 200:
        assert ": second: " in str(caught.value)


def test_a_huge_header_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", MAX_HEADER_BYTES + 1) + b"{}")
    with pytest.raises(CheckpointError, match=f"header of {MAX_HEADER_BYTES + 1} bytes, limit {MAX_HEADER_BYTES}"):
        read_header(path)


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ({"a": entry(0, 8, [4]), "b": entry(4, 12, [4])}, "b: overlaps the tensor before it"),
        ({"a": entry(0, 8, [4]), "b": entry(10, 16, [3])}, "b: leaves a gap before it"),
        ({"a": entry(8, 16, [4])}, "a: leaves a gap before it"),
        ({"a": entry(0, 8, [4])}, "8 bytes after the last tensor belong to none"),
        ({"a": entry(0, 16, [4])}, "a: data_offsets: (0, 16) spans 16 bytes, BF16 [4] needs 8"),
        ({"a": entry(8, 0, [4])}, "a: data_offsets: (8, 0) must be [start, end]"),
        ({"a": entry(0, 16, [-8])}, "a: shape: holds -8"),
        ({"a": entry(0, 16, [1 << 60])}, "a: shape: holds"),
        ({"a": entry(0, 16, [8], "F4")}, "a: dtype: 'F4' is not known"),
        ({"a": {"dtype": "BF16", "shape": [8]}}, "a: data_offsets: missing"),
        ({"a": 7}, "a: must be an object, is 7"),
        ([1], "must hold a JSON object"),
    ],
)
def test_a_malformed_header_names_file_and_tensor(tmp_path: Path, entries: Any, problem: str) -> None:
    path = write(tmp_path / "x.safetensors", entries, bytes(16))
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert problem in str(caught.value)


def test_a_name_written_twice_is_refused(tmp_path: Path) -> None:
    one = json.dumps(entry(0, 8, [4]))
    content = f'{{"a": {one}, "a": {one}}}'.encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(content)) + content + bytes(8))
    with pytest.raises(CheckpointError, match="a: occurs twice"):
        read_header(path)
