import time
from pathlib import Path

import pytest

from expertfleet.cluster.controller.incarnation import next_incarnation


def test_it_grows_although_the_clock_goes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "fleet.incarnation"
    first = next_incarnation(file)
    monkeypatch.setattr(time, "time_ns", lambda: 1_000_000_000)
    assert next_incarnation(file) == first + 1
    assert next_incarnation(file) == first + 2
    assert next_incarnation(None) == 1000


def test_without_room_for_it_the_clock_will_do(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert next_incarnation(tmp_path / "absent" / "fleet.incarnation") > 1 << 40
    assert "cannot be written (No such file or directory)" in caplog.text


def test_a_file_of_something_else_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("seven")
    with pytest.raises(ValueError, match="file: is not the number of a controller"):
        next_incarnation(tmp_path / "file")
