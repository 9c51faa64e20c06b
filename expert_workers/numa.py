"""Which processors a machine's NUMA nodes have, and how a process keeps to some of them and to their memory.

Knows nothing of experts. Linux gives both to a thread and to all that it starts later, so ``keep_to`` comes first.
"""

import ctypes
import os
import platform
from pathlib import Path

from ..settings.ranges import format_ranges, parse_ranges

_NODES = Path("/sys/devices/system/node")
_SET_MEMPOLICY = {"x86_64": 238, "aarch64": 237}
_MPOL_BIND = 2
_MASK_BITS = 1024

Nodes = dict[int, tuple[int, ...]]


def numa_nodes(root: Path = _NODES) -> Nodes:
    """Each NUMA node's processors that this process may use, without nodes that have none; node 0 if none is told."""
    allowed = os.sched_getaffinity(0)
    found = {}
    for folder in sorted(root.glob("node[0-9]*"), key=lambda folder: int(folder.name[4:])):
        told = (folder / "cpulist").read_text().strip()
        if usable := tuple(cpu for cpu in (parse_ranges(str(folder), told) if told else ()) if cpu in allowed):
            found[int(folder.name[4:])] = usable
    return found or {0: tuple(sorted(allowed))}


def keep_to(cpus: tuple[int, ...]) -> str:
    """Binds this thread and those it will start, and their memory where one node has all ``cpus``; says what was bound.

    Raises ValueError for processors that this process may not use.
    """
    if missing := set(cpus) - os.sched_getaffinity(0):
        allowed = format_ranges(sorted(os.sched_getaffinity(0)))
        raise ValueError(
            f"cpus: {format_ranges(sorted(missing))} is not among the processors {allowed} of this process"
        )
    os.sched_setaffinity(0, cpus)
    homes = [node for node, members in numa_nodes().items() if set(cpus) <= set(members)]
    if not homes or not _bind_memory(homes[0]):
        return f"processors {format_ranges(cpus)}"
    return f"processors {format_ranges(cpus)}, memory of NUMA node {homes[0]}"


def _bind_memory(node: int) -> bool:
    """Whether memory comes from the node alone from now on; a container may forbid the call."""
    number = _SET_MEMPOLICY.get(platform.machine())
    if number is None:
        return False
    mask = (ctypes.c_uint64 * (_MASK_BITS // 64))()
    mask[node // 64] = 1 << node % 64
    return bool(ctypes.CDLL(None).syscall(number, _MPOL_BIND, ctypes.byref(mask), _MASK_BITS) == 0)
