"""A Secret's volume as the kubelet writes it, at first and again: every name is a link through ``..data``, and only that is swapped."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path


def mount_secret(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    before = [path for path in folder.glob("..[0-9]*") if path.is_dir()]
    version = folder / f"..{1 + max((int(path.name[2:]) for path in before), default=0)}"
    version.mkdir()
    for name, content in files.items():
        (version / name).write_bytes(content)
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(Path("..data") / name)
    (folder / "..data_tmp").symlink_to(version.name)
    os.replace(folder / "..data_tmp", folder / "..data")
    for old in before:
        shutil.rmtree(old)


def files_of(folder: Path) -> dict[str, bytes]:
    """Those of an ordinary folder, for ``mount_secret``."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}
