"""How much memory a process may still take. Knows nothing of what for."""

import math
from collections.abc import Callable
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")
_GIB = 1 << 30
# Of what is free when a shard starts; rows, results and the process itself need some, too.
_SHARE_OF_MEMORY = 0.9


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


def num_experts_in(memory_gib: float | None, expert_bytes: int, available: Callable[[], int] = available_memory) -> int:
    """How many experts fit into what is given, or else into what is free. Raises ValueError when not one does."""
    num_bytes = int(memory_gib * _GIB) if memory_gib is not None else int(_SHARE_OF_MEMORY * available())
    if num_bytes < expert_bytes:
        least = math.ceil(expert_bytes / _GIB * 1000) / 1000
        given = (
            f"{memory_gib:g} GiB hold" if memory_gib is not None else f"{num_bytes / _GIB:.3f} GiB are free, which hold"
        )
        raise ValueError(
            f"memory_gib: {given} not one expert of {expert_bytes / (1 << 20):.3f} MiB; {least:g} would hold one"
        )
    return num_bytes // expert_bytes
