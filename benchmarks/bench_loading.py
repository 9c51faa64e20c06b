"""How fast expert shards load from a cold page cache, beside as many readers of the same bytes past the cache.

In each round --readers new processes prepare all that a shard prepares before it loads (imports, checkpoint, numerics self-test)
and wait; each has its stretch of the experts. The page cache is emptied of the checkpoint's files (``posix_fadvise``), then all
start at once and ``load``: read by byte range, pack, keep. The other way, ``direct``, in the same processes, equally cold:
the byte ranges of the same tensors, widened to whole blocks, are read with O_DIRECT in file order and dropped. A virtual machine's
host may take free memory back and hand it out again more slowly than a disk reads, so before either way free memory is touched.
Rounds begin with one and the other in turns. A way takes as long as its last process. ``from_disk`` is what came from the disk ÷ the
experts' bytes: below 1 the cache was not cold, above it more was read than asked for.

Prints a CSV line per round; ``ratio`` is load ÷ direct.
"""

import argparse
import itertools
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch

from expertfleet.checkpoint.tensors import Checkpoint
from expertfleet.expert_workers.config import parse_experts
from expertfleet.expert_workers.expert_store import ExpertStore
from expertfleet.expert_workers.sources import ExpertSources
from expertfleet.kernels.numerics import expert_self_test
from expertfleet.membership.epoch import ExpertSet

_BLOCK = 4096
_CHUNK = 8 << 20
_WAYS = ("load", "direct")
COLUMNS = "round,readers,bytes,load_s,direct_s,ratio,load_gb_per_s,direct_gb_per_s,load_from_disk,direct_from_disk"


@dataclass(frozen=True)
class Round:
    """Seconds of both ways, and the bytes that came from the disk."""

    num_bytes: int
    load_s: float
    direct_s: float
    load_read: int
    direct_read: int

    @property
    def ratio(self) -> float:
        return self.load_s / self.direct_s

    def line(self, number: int, readers: int) -> str:
        rates = [f"{self.num_bytes / seconds / 1e9:.2f}" for seconds in (self.load_s, self.direct_s)]
        shares = [f"{read / self.num_bytes:.2f}" for read in (self.load_read, self.direct_read)]
        told = [number, readers, self.num_bytes, f"{self.load_s:.2f}", f"{self.direct_s:.2f}", f"{self.ratio:.2f}"]
        return ",".join(map(str, [*told, *rates, *shares]))


class Reader:
    """A process with a stretch of the experts."""

    def __init__(self, model: Path, experts: str, threads: int) -> None:
        flags = ["--model", model, "--experts", experts, "--threads", threads]
        command = [sys.executable, __file__, *map(str, flags)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def say(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()

    def answer(self) -> int:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"a reader ended with status {self._process.wait()}")
        return int(line)

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


def rounds(model: Path, readers: int, threads: int, count: int) -> Iterator[Round]:
    with Checkpoint.open(model) as checkpoint:
        config = checkpoint.config
        num_bytes = config.expert_bytes * config.num_experts * len(config.moe_layers)
    stretches = list(experts_of(config.num_experts, readers))
    for number in range(count):
        running = [Reader(model, stretch, threads) for stretch in stretches]
        for reader in running:
            reader.answer()
        found = {way: _all(running, way, model) for way in (_WAYS if number % 2 == 0 else reversed(_WAYS))}
        for reader in running:
            reader.end()
        (load_s, load_read), (direct_s, direct_read) = (found[way] for way in _WAYS)
        yield Round(num_bytes, load_s, direct_s, load_read, direct_read)


def experts_of(num_experts: int, shards: int) -> Iterator[str]:
    """For ``--experts`` of each shard: stretches of as equal length as can be."""
    for number in range(shards):
        yield f"{number * num_experts // shards}-{(number + 1) * num_experts // shards - 1}"


def _all(running: list[Reader], way: str, model: Path) -> tuple[float, int]:
    """Seconds, and bytes that came from the disk."""
    drop_cache(model)
    touch_free_memory()
    began = time.perf_counter()
    for reader in running:
        reader.say(way)
    read = sum(reader.answer() for reader in running)
    return time.perf_counter() - began, read


def touch_free_memory() -> None:
    """All but a tenth of it, so that this machine's host, if it has one, hands it out now and not while something is timed."""
    with mmap.mmap(-1, psutil.virtual_memory().available * 9 // 10) as memory:
        pages = np.frombuffer(memory, np.uint8)
        pages[:: mmap.PAGESIZE] = 1
        del pages


def drop_cache(model: Path) -> None:
    os.sync()
    for path in model.glob("*.safetensors"):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def read_on_demand(options: argparse.Namespace) -> None:
    """The process of a Reader: a word in, the bytes that came from the disk for it out; 0 when it is prepared."""
    torch.set_num_threads(options.threads)
    checkpoint = Checkpoint.open(options.model)
    config = checkpoint.config
    dimensions = (config.hidden_size, config.moe_intermediate_size, config.group_size)
    backend, _ = expert_self_test("auto", "cpu", torch.bfloat16, *dimensions)
    experts = parse_experts(options.experts, config.num_experts)
    pairs = [(layer, expert) for layer in config.moe_layers for expert in experts]
    wanted = ExpertSet.from_pairs(pairs, config.num_layers, config.num_experts)
    blocks = list(_blocks(checkpoint, wanted))
    print(0, flush=True)
    for line in sys.stdin:
        before = _bytes_from_disk()
        if line.strip() == "load":
            store = ExpertStore(checkpoint, "bfloat16", ExpertSources(checkpoint))
            store.apply_assignment(wanted, backend, lambda layer, experts: None, lambda: False)
        else:
            _read_directly(options.model, blocks)
        print(_bytes_from_disk() - before, flush=True)


def _blocks(checkpoint: Checkpoint, wanted: ExpertSet) -> Iterator[tuple[str, int, int]]:
    """``(file, start, end)`` of the experts' tensors, widened to whole blocks, in file order; what then touches is one."""
    names = itertools.chain(*(pair for held in wanted.pairs() for pair in checkpoint.expert_names(*held)))
    tensors = map(checkpoint.info, names)
    spans = [(info.file, info.start // _BLOCK * _BLOCK, -(-info.end // _BLOCK) * _BLOCK) for info in tensors]
    (file, start, end), *others = sorted(spans)
    for other, first, last in others:
        if other == file and first <= end:
            end = max(end, last)
        else:
            yield file, start, end
            file, start, end = other, first, last
    yield file, start, end


def _read_directly(model: Path, blocks: list[tuple[str, int, int]]) -> None:
    buffer = memoryview(mmap.mmap(-1, _CHUNK))  # O_DIRECT wants memory that is aligned
    for file, of_file in itertools.groupby(blocks, key=lambda block: block[0]):
        try:
            descriptor = os.open(model / file, os.O_RDONLY | os.O_DIRECT)
        except OSError as error:
            sys.exit(f"{model / file}: {error.strerror}; its file system must support O_DIRECT")
        for _, start, end in of_file:
            while start < end:
                count = os.preadv(descriptor, [buffer[: min(_CHUNK, end - start)]], start)
                if not count:
                    break  # the file's last block is not whole
                start += count
        os.close(descriptor)


def _bytes_from_disk() -> int:
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("read_bytes:"):
            return int(line.split()[1])
    raise RuntimeError("there is no read_bytes in /proc/self/io; this runs on Linux")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a checkpoint on a real disk")
    parser.add_argument("--readers", type=int, default=4, help="processes, as many as there would be shards")
    parser.add_argument("--threads", type=int, default=1, help="of each")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--experts", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.experts:
        read_on_demand(options)
        return
    print(COLUMNS)
    for number, found in enumerate(rounds(options.model, options.readers, options.threads, options.rounds)):
        print(found.line(number, options.readers), flush=True)


if __name__ == "__main__":
    main()
