"""What the kernel tells of a fleet's processes: since when they run, their open files, their memory, what they have read.

Knows nothing of steps. A reading is made while no request runs, and takes some seconds: of files and memory, the least counts.
"""

import asyncio
import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

_SAMPLES, _PAUSE_S = 5, 0.5


@dataclass(frozen=True)
class Process:
    """``started``: ticks since the machine's start; no two processes have it and the pid in common.

    ``read_bytes``: by read calls of any kind, whether from a disk or from memory.
    """

    pid: int
    started: int
    num_fds: int
    rss_kib: int
    read_bytes: int

    @property
    def identity(self) -> tuple[int, int]:
        return self.pid, self.started


async def read_processes(pids: Mapping[str, int]) -> dict[str, Process]:
    """Of each seat; those left out that end meanwhile."""
    newest = {seat: read_process(pid) for seat, pid in pids.items()}
    for _ in range(_SAMPLES - 1):
        await asyncio.sleep(_PAUSE_S)
        newest = {seat: _least(before, read_process(before.pid)) for seat, before in newest.items() if before}
    return {seat: process for seat, process in newest.items() if process}


def read_process(pid: int) -> Process | None:
    """None where there is none."""
    folder = Path("/proc", str(pid))
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        stat = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
        memory, io = _table(folder / "status"), _table(folder / "io")
        num_fds = len(os.listdir(folder / "fd"))
        return Process(pid, int(stat[19]), num_fds, int(memory["VmRSS"].split()[0]), int(io["rchar"]))
    return None


def _least(before: Process, now: Process | None) -> Process | None:
    if now is None or now.identity != before.identity:
        return None
    return replace(now, num_fds=min(before.num_fds, now.num_fds), rss_kib=min(before.rss_kib, now.rss_kib))


def _table(path: Path) -> dict[str, str]:
    return dict(line.split(":", 1) for line in path.read_text(errors="replace").splitlines())
