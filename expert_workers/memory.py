"""How much memory a process may still take. Knows nothing of what for."""

from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Bytes that can be taken without swapping, a container's limit included."""
    available = int(psutil.virtual_memory().available)
    limit, used = read_words(_CGROUP / "memory.max"), read_words(_CGROUP / "memory.current")
    if limit and used and limit[0].isdecimal():
        statistics = read_words(_CGROUP / "memory.stat")
        reclaimable = dict(zip(statistics[::2], statistics[1::2], strict=False)).get("inactive_file", "0")
        available = min(available, int(limit[0]) - int(used[0]) + int(reclaimable))
    return available


def read_words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
