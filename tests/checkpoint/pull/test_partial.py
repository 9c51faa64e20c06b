import errno
import fcntl
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from expertfleet.checkpoint.pull.errors import PullError
from expertfleet.checkpoint.pull.partial import Partial, kept_bytes

MIB = 1 << 20


def reopen(directory: Path) -> Partial:
    return Partial(directory, "x", lambda line: None)


def test_an_earlier_processs_last_mebibyte_is_not_trusted(tmp_path: Path) -> None:
    content = os.urandom(3 * MIB)
    first = reopen(tmp_path)
    first.restart('"v1"')
    first.append(content)
    first.close()
    second = reopen(tmp_path)
    assert (second.size, second.etag) == (2 * MIB, '"v1"')
    assert second.sha256 == hashlib.sha256(content[: 2 * MIB]).hexdigest()
    second.append(content[2 * MIB :])
    assert second.sha256 == hashlib.sha256(content).hexdigest()
    second.finish()
    second.close()
    assert (tmp_path / "x").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_what_cannot_be_continued_is_emptied(tmp_path: Path) -> None:
    (tmp_path / "x.partial").write_bytes(b"x" * 2 * MIB)
    assert kept_bytes(tmp_path, "x") == 2 * MIB
    partial = reopen(tmp_path)
    assert (partial.size, partial.etag, kept_bytes(tmp_path, "x")) == (0, "", 0)
    partial.close()


def test_the_bytes_are_on_disk_before_the_name_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def noted(name: str, call: Callable[..., None]) -> Callable[..., None]:
        return lambda *args: (order.append(name), call(*args))[1]

    partial = reopen(tmp_path)
    partial.append(b"content")
    monkeypatch.setattr(os, "fsync", noted("fsync", os.fsync))
    monkeypatch.setattr(os, "replace", noted("replace", os.replace))
    partial.finish()
    partial.close()
    assert order == ["fsync", "replace", "fsync"]


def test_the_old_bytes_are_gone_before_a_new_etag_stands_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = reopen(tmp_path)
    partial.restart('"v1"')
    partial.append(b"old")
    states: list[tuple[int, str]] = []
    fsync = os.fsync

    def look(descriptor: int) -> None:
        fsync(descriptor)
        states.append((kept_bytes(tmp_path, "x"), (tmp_path / "x.partial.etag").read_text()))

    monkeypatch.setattr(os, "fsync", look)
    partial.restart('"v2"')
    partial.close()
    assert states == [(0, '"v1"')]
    assert (tmp_path / "x.partial.etag").read_text() == '"v2"'


def test_a_file_that_another_process_finished_meanwhile_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock

    def finished_while_waiting(descriptor: int, operation: int) -> None:
        (tmp_path / "x.partial").rename(tmp_path / "x")
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", finished_while_waiting)
    with pytest.raises(PullError, match=r"x\.partial: another process has just pulled it"):
        reopen(tmp_path)


def test_a_file_system_without_locks_will_do_and_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", fail)
    said: list[str] = []
    Partial(tmp_path, "x", said.append).close()
    assert said == [f"{tmp_path / 'x.partial'}: this file system has no locks; let no second pull write here"]


def test_a_link_in_the_place_of_the_partial_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"precious")
    (tmp_path / "x.partial").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        reopen(tmp_path)
    assert (tmp_path / "elsewhere").read_bytes() == b"precious"
