from pathlib import Path

import pytest

from expertfleet.checkpoint.errors import CheckpointError
from expertfleet.checkpoint.json_object import JsonObject, read_json_object


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"{", "not JSON"),
        (b"[1]", "holds a list"),
        (b"null", "holds null"),
        (b'{"a": NaN}', "NaN is not a number"),
        (b'{"a": 1, "b": 2, "a": 3}', "a: occurs twice"),
        (b'{"a": {"b": 1, "b": 1}}', "b: occurs twice"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    ],
)
def test_a_file_that_is_no_plain_object_is_refused_by_name(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=problem) as caught:
        read_json_object(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent\.json: No such file"):
        read_json_object(tmp_path / "absent.json")


@pytest.mark.parametrize("value", ["3", 3.0, True, [3], None])
def test_integer_takes_whole_numbers_only(value: object) -> None:
    with pytest.raises(CheckpointError, match="f: width: "):
        JsonObject("f", {"width": value}).integer("width")


@pytest.mark.parametrize("value", [-1, 0, 11])
def test_integer_names_the_limits(value: int) -> None:
    with pytest.raises(CheckpointError, match=rf"f: outer\.width: {value} is out of range \(1 to 10\)"):
        JsonObject("f", {"outer": {"width": value}}).object("outer").integer("width", maximum=10)


def test_expect_tells_true_from_one_and_null_from_absent() -> None:
    source = JsonObject("f", {"flag": 1, "empty": None})
    with pytest.raises(CheckpointError, match=r"f: flag: 1 is not supported \(must be true\)"):
        source.expect("flag", True)
    source.expect("empty", None)
    source.expect("absent", None)
    with pytest.raises(CheckpointError, match="null is not supported"):
        source.expect("absent", "x")
