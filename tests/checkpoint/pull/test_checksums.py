import hashlib
from pathlib import Path

import pytest

from expertfleet.checkpoint.pull.checksums import file_sha256, parse_sums
from expertfleet.checkpoint.pull.errors import PullError

A, B = "a" * 64, "b" * 64


def test_lines_as_sha256sum_writes_them_are_read() -> None:
    text = f"# made today\n\n{A}  config.json\n{B.upper()} *model.safetensors\n{A}  ./two words\r\n{A}  config.json\n"
    assert parse_sums(text, "sums") == {"config.json": A, "model.safetensors": B, "two words": A}


@pytest.mark.parametrize("line", [f"{A[1:]}  config.json", f"{A} config.json", f"{A}  ", f"SHA256 (x) = {A}", "<html>"])
def test_any_other_line_is_named(line: str) -> None:
    with pytest.raises(PullError, match=r"sums: line 2: .* is not 64 hex digits"):
        parse_sums(f"{A}  x\n{line}\n", "sums")


def test_two_checksums_of_one_file_are_refused() -> None:
    with pytest.raises(PullError, match="sums: line 2: 'x' has another checksum further up"):
        parse_sums(f"{A}  x\n{B}  x\n", "sums")


def test_a_file_is_hashed_whole(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "x").write_bytes(content)
    assert file_sha256(tmp_path / "x") == hashlib.sha256(content).hexdigest()
