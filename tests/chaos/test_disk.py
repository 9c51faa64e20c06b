"""A disk of its own needs root."""

import errno
import os
from pathlib import Path

import pytest
from harness.disk import private_disk

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


@needs_root
def test_a_full_disk_takes_nothing_and_is_free_again_afterwards() -> None:
    with private_disk(64) as disk:
        (disk.folder / "before").write_text("here")
        with disk.full():
            with (
                pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as refusal,
                (disk.folder / "new").open("wb") as file,
            ):
                file.write(bytes(1 << 16))
            assert refusal.value.errno == errno.ENOSPC
            assert (disk.folder / "before").read_text() == "here"
        assert (disk.folder / "new").write_bytes(bytes(1 << 16)) == 1 << 16
        assert os.path.ismount(disk.folder)
    assert not disk.folder.exists()


def test_without_a_size_it_is_an_ordinary_folder_that_goes_away() -> None:
    with private_disk(0) as disk:
        assert not os.path.ismount(disk.folder)
        (disk.folder / "file").touch()
    assert not disk.folder.exists()


def test_nobody_else_sees_it(tmp_path: Path) -> None:
    with private_disk(0) as one, private_disk(0) as other:
        assert one.folder != other.folder
        assert one.folder.stat().st_mode & 0o77 == 0
