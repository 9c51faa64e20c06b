"""A shard of the fleet as a process of its own, or several in one process, with the experts that a benchmark wants.

``--experts-as`` a backend's name serves the real ones; ``echo`` returns every route's row, so that all but the experts is
measured, and reads no weights; ``bf16`` multiplies weights that were rounded to bf16 while loading (3.6 × the bytes), to compare
INT4 with. The process prints its shards' addresses when they are ready, then for every line of input its CPU seconds and
those that its experts took, and ends with the input.
"""

import argparse
import ctypes
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from expertfleet.checkpoint.model_config import ModelConfig
from expertfleet.expert_workers.config import ExpertConfig
from expertfleet.expert_workers.server import ExpertServer
from expertfleet.kernels import int4
from expertfleet.kernels.activation import silu_mul
from expertfleet.kernels.batch_invariant_linear import BatchInvariantLinear, linear_rule
from expertfleet.kernels.errors import KernelError
from expertfleet.kernels.expert_layer import ByExpertLayer, ExpertLayer, ExpertShape, ExpertWeights, Projection
from expertfleet.kernels.row_rule import RuleCache
from expertfleet.membership.epoch import ExpertSet, Member

BOOK = RuleCache()


class EchoLayer(ExpertLayer):
    """An expert's result is its row, after a sleep for each route or for each expert that has routes."""

    us_per_route = us_per_expert = 0.0

    def __init__(self, shape: ExpertShape) -> None:
        super().__init__(shape, torch.bfloat16)
        self._held: set[int] = set()
        self._late_s = 0.0

    def add(self, expert_id: int, gate: Projection, up: Projection, down: Projection) -> None:
        self._keep(expert_id, gate, up, down)

    def _keep(self, expert_id: int, gate: Projection, up: Projection, down: Projection) -> None:
        self._held.add(expert_id)

    def _drop(self, expert_id: int) -> None:
        self._held.discard(expert_id)

    def _unpack_to_checkpoint(self, expert_id: int) -> ExpertWeights:
        raise KernelError("there are no weights")

    def holds(self, expert_id: int) -> bool:
        return expert_id in self._held

    @property
    def bytes_held(self) -> int:
        return 0

    def apply(self, x: torch.Tensor, route_rows: torch.Tensor, route_experts: torch.Tensor, out: torch.Tensor) -> None:
        raise KernelError("a shard asks for rows by their address")

    def apply_at(self, x: int, num_rows: int, route_rows: int, route_experts: int, num_routes: int, out: int) -> None:
        """With as few operations as a native layer has outside its kernel."""
        row_bytes = self.shape.hidden * self.dtype.itemsize
        rows, experts = ((ctypes.c_int32 * num_routes).from_address(at) for at in (route_rows, route_experts))
        for place, row in enumerate(rows):
            ctypes.memmove(out + place * row_bytes, x + row * row_bytes, row_bytes)
        if cost_us := self.us_per_route * num_routes + self.us_per_expert * len(set(experts)):
            self._sleep(cost_us / 1e6)

    def _sleep(self, seconds: float) -> None:
        """A sleep takes longer than it should, by about as much as the one before, which is taken off."""
        asked, began = max(0.0, seconds - self._late_s), time.perf_counter()
        time.sleep(asked)
        self._late_s = time.perf_counter() - began - asked


class Bf16Layer(ByExpertLayer):
    """Products of bf16 weights by the same exact rules as an attention worker's; gate and up are one matrix."""

    def __init__(self, shape: ExpertShape) -> None:
        super().__init__(shape, torch.bfloat16)
        self._gate_up_rule = linear_rule(BOOK, 2 * shape.width, shape.hidden, self.dtype)
        self._down_rule = linear_rule(BOOK, shape.hidden, shape.width, self.dtype)
        self._experts: dict[int, tuple[BatchInvariantLinear, BatchInvariantLinear]] = {}

    def _keep(self, expert_id: int, gate: Projection, up: Projection, down: Projection) -> None:
        both = torch.cat([int4.dequantize(*projection, self.dtype) for projection in (gate, up)])
        last = BatchInvariantLinear(int4.dequantize(*down, self.dtype), self._down_rule)
        self._experts[expert_id] = BatchInvariantLinear(both, self._gate_up_rule), last

    def _drop(self, expert_id: int) -> None:
        del self._experts[expert_id]

    def _unpack_to_checkpoint(self, expert_id: int) -> ExpertWeights:
        raise KernelError("rounded weights cannot be turned back")

    def holds(self, expert_id: int) -> bool:
        return expert_id in self._experts

    @property
    def bytes_held(self) -> int:
        return sum(linear.bytes_held for pair in self._experts.values() for linear in pair)

    def _apply_each(self, expert_ids: list[int], rows: tuple[torch.Tensor, ...]) -> torch.Tensor:
        results = []
        for expert_id, x in zip(expert_ids, rows, strict=True):
            first, last = self._experts[expert_id]
            gate, up = first(x).chunk(2, dim=1)
            results.append(last(silu_mul(gate, up)))
        return torch.cat(results)


LAYERS = {"echo": EchoLayer, "bf16": Bf16Layer}


class ShardProcess:
    def __init__(self, model: Path, seats: Sequence[str], experts_as: str, threads: int = 1, *more: str) -> None:
        self.seats = seats
        flags = ["--model", model, "--seats", *seats, "--experts-as", experts_as, "--threads", threads, *more]
        command = [sys.executable, __file__, *map(str, flags)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.addresses = self._process.stdout.readline().split()
        if not self.addresses:
            sys.exit(f"{', '.join(seats)} ended with status {self._process.wait()}")

    @property
    def address(self) -> str:
        """Of the only shard."""
        (address,) = self.addresses
        return address

    def seconds(self) -> tuple[float, float]:
        """Of CPU, and of its experts by the clock."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("seconds\n")
        self._process.stdin.flush()
        cpu, experts = self._process.stdout.readline().split()
        return float(cpu), float(experts)

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


def members(shards: Sequence[ShardProcess], config: ModelConfig, count: int | None = None) -> list[Member]:
    """The first ``count`` shards, or all, as members of an epoch that deals the experts out to them, one after the other."""
    seats = [pair for shard in shards for pair in zip(shard.seats, shard.addresses, strict=True)][:count]
    made = []
    for number, (seat, address) in enumerate(seats):
        mine = range(number, config.num_experts, len(seats))
        pairs = [(layer, expert) for layer in config.moe_layers for expert in mine]
        held = ExpertSet.from_pairs(pairs, config.num_layers, config.num_experts)
        made.append(Member(seat, address, "any", held))
    return made


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--seats", nargs="+", required=True, help="a shard for each")
    parser.add_argument("--experts-as", required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--us-per-route", type=float, default=0.0, help="how long echo sleeps for each route")
    parser.add_argument("--us-per-expert", type=float, default=0.0, help="and for each expert that has routes")
    parser.add_argument("--spin-us", type=int, default=0)
    parser.add_argument("--pair-transport", default="none")
    parser.add_argument("--pair-min-kib", type=int, default=256)
    options: Any = parser.parse_args()
    EchoLayer.us_per_route, EchoLayer.us_per_expert = options.us_per_route, options.us_per_expert
    servers = [make_server(seat, options) for seat in options.seats]
    for server in servers:
        server.start()
    for server in servers:
        while server.registration.state not in ("ready", "failed"):
            time.sleep(0.05)
        if server.registration.state == "failed":
            sys.exit(f"{server.config.seat}: {server.registration.error}")
    print(*(server.address for server in servers), flush=True)
    for _ in sys.stdin:
        print(cpu_seconds(), sum(server.runtime.counters.compute_s for server in servers), flush=True)
    for server in servers:
        server.stop(5.0)


def make_server(seat: str, options: argparse.Namespace) -> ExpertServer:
    replaced = LAYERS.get(options.experts_as)
    backend: Any = "auto" if replaced else options.experts_as
    pair = {"pair_transport": options.pair_transport, "pair_min_kib": options.pair_min_kib}
    flags = {"backend": backend, "threads": options.threads, "spin_us": options.spin_us, **pair}
    server = ExpertServer(ExpertConfig(options.model, seat=seat, **flags))
    if replaced:
        model = server.checkpoint.config
        shape = ExpertShape(model.hidden_size, model.moe_intermediate_size, model.group_size)
        made = type("Replaced", (), {"new_layer": lambda self: replaced(shape)})()
        server._test_backend = lambda: made  # type: ignore[method-assign]
    if replaced is EchoLayer:
        nothing = torch.empty(0)
        server.checkpoint.read = lambda name, folder=None: nothing  # type: ignore[method-assign]
    return server


if __name__ == "__main__":
    main()
