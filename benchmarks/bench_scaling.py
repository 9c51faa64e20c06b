"""Many shards: what each more of them costs the router, and what it adds while the experts are the limit.

All shards return their rows (see shard_process.py). They live in --processes processes, as one process each would not fit a small
machine, which makes their own share of the work slower than on machines of their own; the router's CPU is not theirs. Two
questions, each asked with lanes of both kinds and all numbers of shards in turns:

``free``: one layer at a time of experts that cost nothing, to --lanes shards. CPU of the router's process per layer, all threads,
and that of each number of shards ÷ that of the first one.
``asleep``: --in-flight micro-batches of --micro-batch tokens, each in an MoE layer of its own, to --shards shards which sleep
--us-per-expert for every expert that has routes (880 µs: a K2 expert's 24.8 MB at 28 GB/s). Layers per second, and their share of
linear: the rate ÷ (shards × the rate of one shard). It counts only where shards sleep nearly all the time (``busy_share``, and
``busiest_share`` of the one that does most) and the machine has processors left (``machine_share``).

Prints a CSV line per question, kind of lanes, number of shards and of tokens; medians of the rounds, shares within each round.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from router_lanes import KINDS, Draw, Lanes, random_draw
from shard_process import ShardProcess, cpu_seconds, members
from shard_reports import ShardReports

from expertfleet.checkpoint.make_tiny import make_tiny
from expertfleet.checkpoint.tensors import Checkpoint
from expertfleet.transport.io_thread import IoThread

_COLUMNS = (
    "experts,lanes,shards,tokens,in_flight,rounds,layers_per_s,share_of_linear,busy_share,busiest_share,frames_per_layer"
    ",router_cpu_us,router_cpu_to_first,shards_cpu_us,machine_share"
)
_DRAWS = 16
_WARM_UP = 8


@dataclass(frozen=True)
class Turn:
    """What one run of layers took."""

    layers: int
    wall_s: float
    frames: int
    router_cpu_s: float
    shards_cpu_s: float
    busy_s: list[float]  # of each shard

    @property
    def router_cpu_us(self) -> float:
        """Per layer."""
        return 1e6 * self.router_cpu_s / self.layers

    @property
    def layers_per_s(self) -> float:
        return self.layers / self.wall_s


class Fleet:
    """Echo shards in some processes, and lanes of both kinds to the first 1, 2, 4 … of them."""

    def __init__(
        self, checkpoint: Checkpoint, counts: Sequence[int], us_per_expert: float, processes: int, io: IoThread
    ) -> None:
        self.us_per_expert = us_per_expert
        seats = [f"expert-{number}" for number in range(max(counts))]
        step = -(-len(seats) // processes)
        dealt = [seats[first : first + step] for first in range(0, len(seats), step)]
        flags = ("--us-per-expert", str(us_per_expert))
        self._shards = [ShardProcess(checkpoint.directory, some, "echo", 1, *flags) for some in dealt]
        self._reports = ShardReports(io, [address for shard in self._shards for address in shard.addresses])
        self.lanes = {
            (kind, count): Lanes(kind, checkpoint, members(self._shards, checkpoint.config, count), io)
            for kind in KINDS
            for count in counts
        }

    def turn(self, lanes: Lanes, draws: Sequence[Draw], layers: int, in_flight: int) -> Turn:
        lanes.run(draws, _WARM_UP, in_flight)
        computed, frames = self._reports.compute_seconds(), lanes.router.counters.frames
        router, shards, began = cpu_seconds(), self._shards_cpu(), time.perf_counter()
        lanes.run(draws, layers, in_flight)
        wall, router, shards = time.perf_counter() - began, cpu_seconds() - router, self._shards_cpu() - shards
        busy = [after - before for after, before in zip(self._reports.compute_seconds(), computed, strict=True)]
        return Turn(layers, wall, lanes.router.counters.frames - frames, router, shards, busy)

    def end(self) -> None:
        for lanes in self.lanes.values():
            lanes.end()
        self._reports.close()
        for shard in self._shards:
            shard.end()

    def _shards_cpu(self) -> float:
        return sum(shard.seconds()[0] for shard in self._shards)


def ask(fleet: Fleet, tokens: int, in_flight: int, options: argparse.Namespace) -> None:
    """Prints a line per kind and number of shards."""
    asleep = fleet.us_per_expert > 0
    turns: dict[tuple[str, int], list[Turn]] = {lane: [] for lane in fleet.lanes}
    draws = [random_draw(tokens, options.checkpoint.config) for _ in range(_DRAWS)]
    for _ in range(options.rounds):
        for (kind, count), lanes in fleet.lanes.items():
            layers = count * options.layers_per_shard if asleep else options.layers
            turns[kind, count].append(fleet.turn(lanes, draws, layers, in_flight))
    first_count = min(count for _, count in turns)
    for (kind, count), taken in turns.items():
        shown = ["asleep" if asleep else "free", kind, count, tokens, in_flight, len(taken)]
        pairs = list(zip(taken, turns[kind, first_count], strict=True))
        print(*shown, *figures(pairs, count, first_count, asleep), sep=",", flush=True)


def figures(pairs: list[tuple[Turn, Turn]], count: int, first_count: int, asleep: bool) -> list[str]:
    """Turns with ``count`` shards, each beside that of the same round with the fewest; medians."""
    turns = [turn for turn, _ in pairs]
    processors = len(os.sched_getaffinity(0))
    return [
        _median([turn.layers_per_s for turn in turns], 1),
        *(_busy(pairs, count, first_count) if asleep else [""] * 3),
        _median([turn.frames / turn.layers for turn in turns], 1),
        _median([turn.router_cpu_us for turn in turns], 0),
        _median([turn.router_cpu_us / first.router_cpu_us for turn, first in pairs], 2),
        _median([1e6 * turn.shards_cpu_s / turn.layers for turn in turns], 0),
        _median([(turn.router_cpu_s + turn.shards_cpu_s) / (turn.wall_s * processors) for turn in turns], 2),
    ]


def _busy(pairs: list[tuple[Turn, Turn]], count: int, first_count: int) -> list[str]:
    return [
        _median([turn.layers_per_s * first_count / (first.layers_per_s * count) for turn, first in pairs], 3),
        _median([sum(turn.busy_s) / count / turn.wall_s for turn, _ in pairs], 3),
        _median([max(turn.busy_s) / turn.wall_s for turn, _ in pairs], 3),
    ]


def _median(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lanes", type=int, nargs="+", default=[4, 8, 16, 32], help="shards whose experts are free")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 16], help="of one layer to them")
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="shards that sleep")
    parser.add_argument("--micro-batch", type=int, default=16, help="tokens of one layer to them")
    parser.add_argument("--in-flight", type=int, default=4, help="their micro-batches under way at once")
    parser.add_argument("--us-per-expert", type=float, default=880.0)
    parser.add_argument("--layers", type=int, default=200, help="in each round, where experts are free")
    parser.add_argument("--layers-per-shard", type=int, default=20, help="in each round, where shards sleep")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=4, help="that hold the shards")
    parser.add_argument("--hidden", type=int, default=7168)
    parser.add_argument("--experts", type=int, default=384)
    options = parser.parse_args()
    torch.set_num_threads(1)
    io = IoThread("io")  # gRPC's poller serves all of a process's loops, so there is one
    with tempfile.TemporaryDirectory(prefix="bench") as folder:
        shape = {"hidden": options.hidden, "experts": options.experts, "expert_width": 32, "dense_width": 32}
        make_tiny(Path(folder) / "model", layers=1 + options.in_flight, vocab=512, **shape)
        options.checkpoint = Checkpoint.open(Path(folder) / "model")
        print(_COLUMNS)
        free = Fleet(options.checkpoint, options.lanes, 0, options.processes, io)
        for tokens in options.tokens:
            ask(free, tokens, 1, options)
        free.end()
        asleep = Fleet(options.checkpoint, options.shards, options.us_per_expert, options.processes, io)
        ask(asleep, options.micro_batch, options.in_flight, options)
        asleep.end()
    io.stop()


if __name__ == "__main__":
    main()
