import os
import subprocess
import sys
from pathlib import Path

import pytest

from expertfleet.expert_workers.config import ExpertConfig
from expertfleet.expert_workers.numa import keep_to, numa_nodes
from expertfleet.kernels import native

MINE = sorted(os.sched_getaffinity(0))


def test_nodes_have_the_processors_that_may_be_used(tmp_path: Path) -> None:
    for node, told in ((0, f"{MINE[0]}"), (1, "4000-4003"), (10, f"{MINE[-1]},4004"), (2, "")):
        (tmp_path / f"node{node}").mkdir()
        (tmp_path / f"node{node}" / "cpulist").write_text(f"{told}\n")
    assert numa_nodes(tmp_path) == {0: (MINE[0],), 10: (MINE[-1],)}


def test_a_machine_that_tells_no_nodes_has_one(tmp_path: Path) -> None:
    assert numa_nodes(tmp_path) == {0: tuple(MINE)}
    assert sorted(cpu for cpus in numa_nodes().values() for cpu in cpus) == MINE


def test_a_processor_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^cpus: 4000-4001 is not among the processors"):
        keep_to((MINE[0], 4000, 4001))
    assert sorted(os.sched_getaffinity(0)) == MINE


def test_more_threads_than_processors_are_refused() -> None:
    with pytest.raises(ValueError, match="cpus: '0-1' are fewer than the 3 threads"):
        ExpertConfig(Path("any"), cpus="0-1", threads=3)


BOUND = """
import os, re, sys, threading
from pathlib import Path
import torch
from expertfleet.expert_workers.numa import keep_to
from expertfleet.kernels import native
cpus = tuple(map(int, sys.argv[1].split(",")))
told = keep_to(cpus)
library = native.load()
library.pin(cpus)
torch.set_num_threads(len(cpus))
memory = torch.ones(1 << 26, dtype=torch.uint8)
before = set(os.listdir("/proc/self/task"))
library.read(memory, library.instruction_sets[0])
started = set(os.listdir("/proc/self/task")) - before
print(told)
print(sorted(os.sched_getaffinity(0)), sorted(sorted(os.sched_getaffinity(int(task))) for task in started))
print(sum("bind:" in line for line in Path("/proc/self/numa_maps").read_text().splitlines()))
"""


@pytest.mark.skipif(isinstance(native.load(), str), reason="the native kernel was not built")
def test_threads_and_memory_stay_where_they_were_told() -> None:
    cpus = MINE[:2]
    run = subprocess.run(
        [sys.executable, "-c", BOUND, ",".join(map(str, cpus))], capture_output=True, text=True, check=True, timeout=120
    )
    told, threads, bound = run.stdout.splitlines()
    assert told.startswith("processors ")
    assert threads == f"[{cpus[0]}] {[[cpu] for cpu in cpus[1:]]}"
    assert (int(bound) > 0) == ("memory of NUMA node" in told)
