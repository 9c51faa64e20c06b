"""A shard of the fleet as a process of its own, with the experts that a benchmark wants.

``--experts-as`` a backend's name serves the real ones; ``echo`` returns every route's row, so that all but the experts is
measured; ``bf16`` multiplies weights that were rounded to bf16 while loading (3.6 × the bytes), to compare INT4 with.
The process prints its address when it is ready, then its CPU seconds for every line of input, and ends with the input.
"""

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from expertfleet.expert_workers.config import ExpertConfig
from expertfleet.expert_workers.server import ExpertServer
from expertfleet.kernels import int4
from expertfleet.kernels.activation import silu_mul
from expertfleet.kernels.exact_linear import ExactLinear, linear_rule
from expertfleet.kernels.expert_layer import ByExpertLayer, ExpertLayer, ExpertShape, Projection
from expertfleet.kernels.row_rule import RuleBook

BOOK = RuleBook()


class EchoLayer(ExpertLayer):
    """An expert's result is its row, after a sleep for each route."""

    us_per_route = 0.0

    def __init__(self, shape: ExpertShape) -> None:
        super().__init__(shape, torch.bfloat16)
        self._held: set[int] = set()

    def _keep(self, expert_id: int, gate: Projection, up: Projection, down: Projection) -> None:
        self._held.add(expert_id)

    def _drop(self, expert_id: int) -> None:
        self._held.discard(expert_id)

    def holds(self, expert_id: int) -> bool:
        return expert_id in self._held

    @property
    def bytes_held(self) -> int:
        return 0

    def apply(self, x: torch.Tensor, route_rows: torch.Tensor, route_experts: torch.Tensor, out: torch.Tensor) -> None:
        if self.us_per_route:
            time.sleep(self.us_per_route * len(route_rows) / 1e6)
        torch.index_select(x, 0, route_rows, out=out)


class Bf16Layer(ByExpertLayer):
    """Products of bf16 weights by the same exact rules as an attention worker's; gate and up are one matrix."""

    def __init__(self, shape: ExpertShape) -> None:
        super().__init__(shape, torch.bfloat16)
        self._gate_up_rule = linear_rule(BOOK, 2 * shape.width, shape.hidden, self.dtype)
        self._down_rule = linear_rule(BOOK, shape.hidden, shape.width, self.dtype)
        self._experts: dict[int, tuple[ExactLinear, ExactLinear]] = {}

    def _keep(self, expert_id: int, gate: Projection, up: Projection, down: Projection) -> None:
        both = torch.cat([int4.dequantize(*projection, self.dtype) for projection in (gate, up)])
        last = ExactLinear(int4.dequantize(*down, self.dtype), self._down_rule)
        self._experts[expert_id] = ExactLinear(both, self._gate_up_rule), last

    def _drop(self, expert_id: int) -> None:
        del self._experts[expert_id]

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
    def __init__(self, model: Path, seat: str, experts_as: str, threads: int = 1, *more: str) -> None:
        self.seat, self.experts_as = seat, experts_as
        flags = ["--model", model, "--seat", seat, "--experts-as", experts_as, "--threads", threads, *more]
        command = [sys.executable, __file__, *map(str, flags)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()
        if not self.address:
            sys.exit(f"{seat} ended with status {self._process.wait()}")

    def cpu_seconds(self) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("cpu\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--seat", required=True)
    parser.add_argument("--experts-as", required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--us-per-route", type=float, default=0.0, help="how long echo sleeps for each route")
    options: Any = parser.parse_args()
    EchoLayer.us_per_route = options.us_per_route
    replaced = LAYERS.get(options.experts_as)
    backend = "auto" if replaced else options.experts_as
    server = ExpertServer(ExpertConfig(options.model, seat=options.seat, backend=backend, threads=options.threads))
    if replaced:
        real = server._test_backend

        def test_backend() -> Any:
            shape = real().shape
            return type("Replaced", (), {"new_layer": lambda self: replaced(shape)})()

        server._test_backend = test_backend  # type: ignore[method-assign]
    server.start()
    while server.tenancy.state not in ("ready", "failed"):
        time.sleep(0.05)
    if server.tenancy.state == "failed":
        sys.exit(f"{options.seat}: {server.tenancy.error}")
    print(server.address, flush=True)
    for _ in sys.stdin:
        print(cpu_seconds(), flush=True)
    server.stop(0)


if __name__ == "__main__":
    main()
