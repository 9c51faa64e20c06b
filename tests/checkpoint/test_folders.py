"""A second folder has what the first one lacks, and never what does not belong to it."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from expertfleet.checkpoint.check import check
from expertfleet.checkpoint.checkpoint_headers import Outline
from expertfleet.checkpoint.errors import CheckpointError
from expertfleet.checkpoint.file_headers import RawHead, read_head
from expertfleet.checkpoint.files import CheckpointFiles
from expertfleet.checkpoint.make_tiny import make_tiny

SECOND = "model-00002-of-000004.safetensors"
THIRD = "model-00003-of-000004.safetensors"


def content(files: CheckpointFiles, name: str, folder: int | None = None) -> bytes:
    info = files.info(name)
    read = bytearray(info.num_bytes)
    files.read_bytes(name, info.start, memoryview(read), folder)
    return bytes(read)


def last_of(files: CheckpointFiles, file: str) -> str:
    return max((name for name, info in files.tensors.items() if info.file == file), key=lambda n: files.info(n).end)


def truncate(path: Path, num_bytes: int) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - num_bytes)


def heads_of(folder: Path) -> Callable[..., dict[str, RawHead]]:
    return lambda files: {file: read_head(folder / file) for file in files}


def test_missing_files_are_read_from_the_shared_folder(tiny: Path, copy: Path) -> None:
    (copy / SECOND).unlink()
    with CheckpointFiles.open(copy, shared=tiny) as files, CheckpointFiles.open(tiny) as whole:
        assert files.fingerprint == whole.fingerprint
        assert not files.is_partial
        assert all(content(files, name) == content(whole, name) for name in whole.tensors)
        check(files)
        with pytest.raises(CheckpointError, match=rf"{copy / SECOND}: .*: No such file"):
            content(files, last_of(files, SECOND), folder=0)


def test_what_no_folder_can_give_is_not_expected_and_nothing_is_said(
    tiny: Path, copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (copy / SECOND).unlink()
    with CheckpointFiles.open(copy, ask=heads_of(tiny)) as files:
        caplog.clear()
        for name in (*files.tensors, "no.such.tensor"):
            files.expect(name)
        assert not files.ranges_read
        assert not caplog.text


def test_a_truncated_file_is_named_once_and_read_from_the_shared_folder(
    tiny: Path, copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    truncate(copy / THIRD, 5)
    with CheckpointFiles.open(copy, shared=tiny) as files, CheckpointFiles.open(tiny) as whole:
        assert files.fingerprint == whole.fingerprint
        assert all(content(files, name) == content(whole, name) for name in whole.tensors)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert f"{copy / THIRD}: " in caplog.text
    assert "truncated: ends at byte" in caplog.text


def test_a_file_that_shrinks_while_it_is_open_is_read_from_the_shared_folder(
    tiny: Path, copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with CheckpointFiles.open(copy, shared=tiny) as files, CheckpointFiles.open(tiny) as whole:
        name = last_of(files, THIRD)
        truncate(copy / THIRD, 1)
        assert content(files, name) == content(files, name) == content(whole, name)
    assert caplog.text.count("truncated at byte") == 1


def test_a_file_of_another_checkpoint_is_not_taken(tiny: Path, copy: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    make_tiny(other, seed=8, hidden=64, layers=3, experts=8, top_k=2, expert_width=32, dense_width=64, threads=2)
    with CheckpointFiles.open(copy, shared=other) as files:
        name = last_of(files, THIRD)
        truncate(copy / THIRD, 1)
        for _ in range(2):
            with pytest.raises(CheckpointError, match=f"{other / THIRD}: is not the file of this checkpoint"):
                content(files, name)


def test_what_neither_folder_has_is_refused(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (copy / SECOND).unlink()
    with pytest.raises(CheckpointError, match=rf"which does not exist in {copy} or {tmp_path / 'empty'}"):
        CheckpointFiles.open(copy, shared=tmp_path / "empty")
    with pytest.raises(CheckpointError, match="nowhere: is not a directory"):
        CheckpointFiles.open(copy, shared=tmp_path / "nowhere")


def test_who_is_told_the_heads_of_missing_files_has_the_same_fingerprint(tiny: Path, copy: Path) -> None:
    for path in copy.glob("*.safetensors"):
        path.unlink()
    asked: list[str] = []

    def ask(files: list[str]) -> dict[str, RawHead]:
        asked.extend(files)
        return Outline(tiny).heads(files)

    with CheckpointFiles.open(copy, ask=ask) as files, CheckpointFiles.open(tiny) as whole:
        assert sorted(asked) == sorted(whole.headers)
        assert files.is_partial
        assert files.fingerprint == whole.fingerprint
        assert files.tensors == whole.tensors


def test_a_wrong_head_is_another_fingerprint(tiny: Path, copy: Path) -> None:
    (copy / THIRD).unlink()

    def ask(files: list[str]) -> dict[str, RawHead]:
        head = read_head(tiny / THIRD)
        return {THIRD: head._replace(content=head.content[:-1] + bytes([head.content[-1] ^ 1]))}

    with CheckpointFiles.open(copy, ask=ask) as files, CheckpointFiles.open(tiny) as whole:
        assert files.fingerprint != whole.fingerprint


def test_a_head_that_is_cut_off_is_refused(tiny: Path, copy: Path) -> None:
    (copy / THIRD).unlink()
    whole = read_head(tiny / THIRD)
    for content, message in ((whole.content[:-1], "bytes of its data begin it"), (whole.content[:99], "truncated")):
        cut = whole._replace(content=content)
        with pytest.raises(CheckpointError, match=f"{THIRD}: .*{message}"):
            CheckpointFiles.open(copy, ask=lambda files, cut=cut: {THIRD: cut})


@pytest.mark.parametrize("file", ["config.json", "../secret.safetensors", "/etc/passwd", "model.safetensors"])
def test_only_the_checkpoint_s_own_files_are_told_of(tiny: Path, file: str) -> None:
    with pytest.raises(CheckpointError, match="is no file of the checkpoint"):
        Outline(tiny).heads([file])


def test_the_outline_takes_what_is_missing_from_the_shared_folder(tiny: Path, copy: Path) -> None:
    (copy / SECOND).unlink()
    assert Outline(copy, tiny).heads([SECOND, THIRD]) == heads_of(tiny)([SECOND, THIRD])
    with pytest.raises(CheckpointError, match=f"{SECOND}: No such file"):
        Outline(copy).heads([SECOND])
