"""Frames without end: encoded, decoded and dropped in K2-Thinking's real sizes, then mutated; does memory grow, does anything break?

1. ``--frames`` frames of a mix (dispatches of 1 to 64 rows of 7,168 bf16 values with top-8 routes, result pieces, their placed
twins for shared memory, cancels, errors, greetings) are encoded and decoded; the growth of the resident set after the first
tenth is divided by the frames after it. 2. As many frames are decoded after 1 to 8 of their bytes were changed, or an end was cut
off or added: each must decode or be refused by type, and no refusal may allocate. Frames of at most 128 KiB go through sockets as well,
to the compiled calls that both ends of a lane read fast-path frames with, which must leave the memory around results as it is. --processes share the frames, each with a seed
of its own, and look at their own memory. Prints a CSV line for each process and for whole and mutated frames (of 10,000,000
frames the growth counts after the first million); ends with 1 if one of the limits (1 byte per frame, 64 MiB for one decoding) is
passed.
"""

import argparse
import ctypes
import multiprocessing
import os
import random
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

from expertfleet.kernels import native_lanes
from expertfleet.kernels.native_lanes import AdmissionFilter, ShardEnd, WorkerEnd
from expertfleet.proto.codec import (
    Dispatch,
    DispatchShm,
    Hello,
    Result,
    ResultShm,
    decode,
    encode_cancel,
    encode_dispatch,
    encode_dispatch_shm,
    encode_error,
    encode_hello,
    encode_result,
    encode_result_shm,
)
from expertfleet.proto.errors import Code, FleetError
from expertfleet.proto.frame_prefix import WIRE_VERSION, Kind
from expertfleet.proto.rows import Rows, address_of

_HIDDEN, _EXPERTS, _TOP_K, _LIMIT = 7168, 384, 8, 64 << 20
_ROWS = (1, 1, 1, 1, 2, 4, 8, 16, 64)
_BYTES_PER_FRAME, _ONE_DECODING = 1.0, 64 << 20
_REPORTS = 10


class Compiled:
    """The compiled calls of both ends, and a socket of each kind for each."""

    _MOST_BYTES, _ROUTES, _GUARD = 128 << 10, 64 * _TOP_K, 4096

    def __init__(self) -> None:
        calls = native_lanes.calls()
        assert calls is not None, "the library was not built"
        self.num_handled = 0
        self._calls = calls
        self._buffer = bytearray(1 << 18)
        self._into = address_of(self._buffer), len(self._buffer)
        self._held = bytearray(b"\1" * 4 * _EXPERTS)
        self._memory = torch.zeros(1 << 22, dtype=torch.uint8)
        shape = {"num_layers": 4, "num_experts": _EXPERTS, "hidden": _HIDDEN, "dtype": 1, "item_bytes": 2}
        self._filter = AdmissionFilter(held=address_of(self._held), **shape)
        self._results = torch.zeros(self._ROUTES * _HIDDEN + 2 * self._GUARD, dtype=torch.bfloat16)
        self._routes = torch.arange(self._ROUTES)
        self._places = torch.zeros(self._ROUTES + 2 * self._GUARD, dtype=torch.int64)
        begins = self._results[self._GUARD :], self._routes, self._places[self._GUARD :]
        self._answers = [begin.data_ptr() for begin in begins]
        self._clear = ctypes.c_int64(1)
        self._pairs = [socket.socketpair(socket.AF_UNIX, kind) for kind in (socket.SOCK_SEQPACKET, socket.SOCK_STREAM)]
        self._shards, self._workers = [], []
        for _, near in self._pairs:
            shard = ShardEnd(socket=near.fileno(), version=WIRE_VERSION, most_routes=64)
            shard.filter = ctypes.pointer(self._filter)
            self._shards.append(shard)
            self._workers.append(WorkerEnd())
            native_lanes.open_end(self._workers[-1], near.fileno(), WIRE_VERSION, self._clear)
        self._shards[0].memory, self._shards[0].memory_bytes = self._memory.data_ptr(), self._memory.nbytes

    def take(self, frame: bytes, kind: int, frame_id: int, num_routes: int) -> None:
        """By the calls for frames of this kind, or for a kind of none by all of them; a frame of so many routes is awaited."""
        if not 0 < len(frame) <= self._MOST_BYTES:
            return
        is_of_none = kind not in (Kind.DISPATCH_SHM, Kind.DISPATCH, Kind.RESULT_SHM, Kind.RESULT)
        for stream, asks, answers in ((0, Kind.DISPATCH_SHM, Kind.RESULT_SHM), (1, Kind.DISPATCH, Kind.RESULT)):
            if kind == asks or is_of_none:
                self._take_asked(stream, frame)
            if kind == answers or is_of_none:
                self._take_answer(stream, frame, frame_id, num_routes)

    def _send(self, stream: int, frame: bytes) -> None:
        self._pairs[stream][0].send(len(frame).to_bytes(8, "little") + frame if stream else frame)

    def _take_asked(self, stream: int, frame: bytes) -> None:
        self._send(stream, frame)
        call = self._calls.take_dispatch if stream else self._calls.take_dispatch_shm
        self.num_handled += call(ctypes.addressof(self._shards[stream]), *self._into) == native_lanes.HANDLED

    def _take_answer(self, stream: int, frame: bytes, frame_id: int, num_routes: int) -> None:
        worker = self._workers[stream]
        at = ctypes.addressof(worker)
        self._calls.expect(at, frame_id, num_routes, _HIDDEN, 2 * _HIDDEN, 1, *self._answers)
        self._send(stream, frame)
        call = self._calls.take_results if stream else self._calls.take_result_shm
        call(at, *self._into)
        self.num_handled += worker.num_came
        self._calls.forget(at, frame_id)
        if worker.body_left:  # a frame that says it is longer than it is
            native_lanes.open_end(worker, worker.socket, WIRE_VERSION, self._clear)

    def is_intact(self) -> bool:
        """Whether nothing lies where nothing belongs."""
        around = [
            memory[part]
            for memory in (self._results, self._places)
            for part in (slice(self._GUARD), slice(-self._GUARD, None))
        ]
        return not any(bool(memory.any()) for memory in around)


class Mix:
    """Makes frames; rows are views of one block, so that drawing them costs little."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.num_routes, self.kind = 1, 0  # of the frame that was made last
        self._block = torch.randn(_ROWS[-1] * _TOP_K, _HIDDEN).bfloat16()
        self._makes: tuple[Callable[[int], bytes], ...] = (
            *(self._dispatch, self._result, self._placed, self._filled) * 4,
            lambda frame_id: encode_cancel(frame_id),
            lambda frame_id: encode_error(frame_id, FleetError(Code.NOT_HELD, "expert 7 of layer 3 is not held")),
            lambda frame_id: encode_hello(Hello("attention-0", "ab" * 32, "bfloat16", _LIMIT)),
        )

    def frame(self, frame_id: int) -> bytes:
        frame = self.rng.choice(self._makes)(frame_id)
        self.kind = frame[5]
        return frame

    def _dispatch(self, frame_id: int) -> bytes:
        rows = self.rng.choice(_ROWS)
        return encode_dispatch(
            Dispatch(frame_id, bytes(8), (1, 2), 3, 0, 10**7, Rows.of(self._block[:rows]), *self._routes(rows))
        )

    def _placed(self, frame_id: int) -> bytes:
        rows = self.rng.choice(_ROWS)
        shape = (torch.bfloat16, rows, _HIDDEN, 0, 1 << 20)
        return encode_dispatch_shm(DispatchShm(frame_id, bytes(8), (1, 2), 3, 0, 10**7, *shape, *self._routes(rows)))

    def _result(self, frame_id: int) -> bytes:
        self.num_routes = routes = self.rng.choice(_ROWS[:-1]) * _TOP_K
        return encode_result(frame_id, 0, routes, Rows.of(self._block[: min(routes, 64)]))

    def _filled(self, frame_id: int) -> bytes:
        self.num_routes = self.rng.choice(_ROWS) * _TOP_K
        return encode_result_shm(ResultShm(frame_id, 0, 8, self.num_routes))

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
    compiled = Compiled()

    def take(data: bytes, index: int) -> None:
        compiled.take(data, mix.kind, index + 1, mix.num_routes)

    whole = _soak("whole", seed, frames, lambda index: mix.frame(index + 1), take)
    num_handled, compiled.num_handled = compiled.num_handled, 0
    mutated = _soak("mutated", seed, frames, lambda index: mix.mutated(mix.frame(index + 1)), take)
    print(
        f"# seed {seed}: the fast path took {num_handled} whole and {compiled.num_handled} mutated frames",
        file=sys.stderr,
    )
    if not (compiled.is_intact() and num_handled):
        print(f"# seed {seed}: compiled calls wrote where nothing belongs, or did nothing", file=sys.stderr)
        return False
    return whole and mutated


def _soak(what: str, seed: int, frames: int, make: Callable[[int], bytes], take: Callable[[bytes, int], None]) -> bool:
    began, refused, largest = time.monotonic(), 0, 0
    after_first_tenth = resident = _resident()
    for index in _counted(what, seed, frames):
        data = make(index)
        take(data, index)
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
