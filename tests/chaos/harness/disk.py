"""The folder that a fleet under test writes to, and, where a plan fills it, the small disk that it is then.

Knows nothing of fleets. The disk is a file system in memory, mounted for the run; that needs root.
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from expertfleet.benchmarks.networks.commands import NetworkError

_PIECE = bytes(1 << 20)


@dataclass(frozen=True)
class Disk:
    folder: Path

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        """Inside, nothing more can be written: a file has taken all that was left."""
        path = self.folder / "full"
        with path.open("wb", buffering=0) as file:
            with contextlib.suppress(OSError):
                while file.write(_PIECE):
                    pass
            with contextlib.suppress(OSError):
                while file.write(b"0" * 512):
                    pass
        try:
            yield
        finally:
            path.unlink()

    @property
    def free_bytes(self) -> int:
        found = os.statvfs(self.folder)
        return found.f_bavail * found.f_frsize


@contextlib.contextmanager
def private_disk(mib: int) -> Iterator[Disk]:
    """A folder with a short name, because sockets' paths must be short; on a disk of so many MiB, if they are given."""
    folder = Path(tempfile.mkdtemp(prefix="c", dir="/tmp"))
    try:
        if mib:
            _run("mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=700", "expertfleet-chaos", str(folder))
        yield Disk(folder)
    finally:
        if mib and os.path.ismount(folder):
            _run("umount", "--lazy", str(folder))
        shutil.rmtree(folder, ignore_errors=True)


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        told = " ".join((getattr(error, "stderr", "") or str(error)).split())
        raise NetworkError(f"disk_mib: a disk of its own needs root and mount: {told}") from error
