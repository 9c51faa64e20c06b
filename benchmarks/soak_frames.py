"""Frames without end: encoded, decoded and dropped in K2-Thinking's real sizes, then mutated; does memory grow, does anything break?

1. ``--frames`` frames of a mix (dispatches of 1 to 64 rows of 7,168 bf16 values with top-8 routes, result pieces, their placed
twins for shared memory, cancels, errors, greetings) are encoded and decoded; the growth of the resident set after the first
tenth is divided by the frames after it. 2. As many frames are decoded after 1 to 8 of their bytes were changed, or an end was cut
off or added: each must decode or be refused by type, and no refusal may allocate. --processes share the frames, each with a seed
of its own, and look at their own memory. Prints a CSV line for each process and for whole and mutated frames (of 10,000,000
frames the growth counts after the first million); ends with 1 if one of the limits (1 byte per frame, 64 MiB for one decoding) is
passed.
"""

import argparse
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

from expertfleet.proto.codec import (
    Dispatch,
    Filled,
    Hello,
    Placed,
    Result,
    decode,
    encode_cancel,
    encode_dispatch,
    encode_error,
    encode_filled,
    encode_hello,
    encode_placed,
    encode_result,
)
from expertfleet.proto.errors import Code, FleetError
from expertfleet.proto.rows import Rows

_HIDDEN, _EXPERTS, _TOP_K, _LIMIT = 7168, 384, 8, 64 << 20
_ROWS = (1, 1, 1, 1, 2, 4, 8, 16, 64)
_BYTES_PER_FRAME, _ONE_DECODING = 1.0, 64 << 20
_REPORTS = 10


class Mix:
    """Makes frames; rows are views of one block, so that drawing them costs little."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self._block = torch.randn(_ROWS[-1] * _TOP_K, _HIDDEN).bfloat16()
        self._makes: tuple[Callable[[int], bytes], ...] = (
            *(self._dispatch, self._result, self._placed, self._filled) * 4,
            lambda frame_id: encode_cancel(frame_id),
            lambda frame_id: encode_error(frame_id, FleetError(Code.NOT_HELD, "expert 7 of layer 3 is not held")),
            lambda frame_id: encode_hello(Hello("attention-0", "ab" * 32, "bfloat16", _LIMIT)),
        )

    def frame(self, frame_id: int) -> bytes:
        return self.rng.choice(self._makes)(frame_id)

    def _dispatch(self, frame_id: int) -> bytes:
        rows = self.rng.choice(_ROWS)
        return encode_dispatch(
            Dispatch(frame_id, bytes(8), (1, 2), 3, 0, 10**7, Rows.of(self._block[:rows]), *self._routes(rows))
        )

    def _placed(self, frame_id: int) -> bytes:
        rows = self.rng.choice(_ROWS)
        shape = (torch.bfloat16, rows, _HIDDEN, 0, 1 << 20)
        return encode_placed(Placed(frame_id, bytes(8), (1, 2), 3, 0, 10**7, *shape, *self._routes(rows)))

    def _result(self, frame_id: int) -> bytes:
        routes = self.rng.choice(_ROWS[:-1]) * _TOP_K
        return encode_result(frame_id, 0, routes, Rows.of(self._block[: min(routes, 64)]))

    def _filled(self, frame_id: int) -> bytes:
        return encode_filled(Filled(frame_id, 0, 8, 64))

    def _routes(self, rows: int) -> tuple[memoryview, memoryview]:
        count = rows * _TOP_K
        experts = np.frombuffer(self.rng.randbytes(2 * count), np.uint16) % _EXPERTS
        return (np.arange(count) // _TOP_K).astype(np.int32).data, experts.astype(np.int32).data

    def mutated(self, frame: bytes) -> bytes:
        kind = self.rng.random()
        if kind < 0.1:
            return frame[: self.rng.randrange(len(frame))]
        if kind < 0.2:
            return frame + self.rng.randbytes(self.rng.randint(1, 64))
        changed = bytearray(frame)
        for _ in range(self.rng.randint(1, 8)):
            # Headers decide; most of a frame is rows, whose bytes mean nothing.
            place = self.rng.randrange(80) if self.rng.random() < 0.8 else self.rng.randrange(len(changed))
            changed[min(place, len(changed) - 1)] = self.rng.getrandbits(8)
        return bytes(changed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=10_000_000, help="of all processes, whole, and as many mutated")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="of the first process")
    options = parser.parse_args()
    print("what,seed,frames,seconds,frames_per_s,refused,bytes_per_frame,largest_growth_bytes", flush=True)
    seeds = range(options.seed, options.seed + options.processes)
    share = -(-options.frames // options.processes)
    with ProcessPoolExecutor(options.processes, multiprocessing.get_context("spawn")) as pool:
        sys.exit(int(not all(pool.map(soak, seeds, [share] * len(seeds)))))


def soak(seed: int, frames: int) -> bool:
    """In a process of its own: whether the limits were kept."""
    torch.set_num_threads(1)
    mix = Mix(random.Random(seed))
    whole = _soak("whole", seed, frames, lambda index: mix.frame(index + 1))
    mutated = _soak("mutated", seed, frames, lambda index: mix.mutated(mix.frame(index + 1)))
    return whole and mutated


def _soak(what: str, seed: int, frames: int, make: Callable[[int], bytes]) -> bool:
    began, refused, largest = time.monotonic(), 0, 0
    after_first_tenth = resident = _resident()
    for index in _counted(what, seed, frames):
        data = make(index)
        try:
            frame = decode(data, _LIMIT)
            if isinstance(frame, Dispatch | Result):
                assert frame.rows.tensor.shape == (frame.rows.count, frame.rows.width)
        except FleetError:
            refused += 1
        if index % 1000 == 0:  # reading the resident set costs as much as ten frames
            resident, before = _resident(), resident
            largest = max(largest, resident - before)
        if index == frames // 10:
            after_first_tenth = _resident()
    took = time.monotonic() - began
    slope = (_resident() - after_first_tenth) / (frames * 0.9)
    rate = frames / took
    print(
        what, seed, frames, f"{took:.0f}", f"{rate:.0f}", refused, f"{slope:.3f}", largest,
        sep=",", flush=True,
    )  # fmt: skip
    return slope <= _BYTES_PER_FRAME and largest <= _ONE_DECODING and (what == "mutated" or not refused)


def _counted(what: str, seed: int, frames: int) -> Iterator[int]:
    for index in range(frames):
        if index and index % (max(1, frames // _REPORTS)) == 0:
            print(f"# {what}, seed {seed}: {index} frames, {_resident() >> 20} MiB", file=sys.stderr, flush=True)
        yield index


def _resident() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    raise RuntimeError("there is no VmRSS in /proc/self/status; this runs on Linux")


if __name__ == "__main__":
    main()
