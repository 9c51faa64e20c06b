"""The scoreboard of the INT4 expert kernels on CPUs: one CSV line per kernel, number of experts held and of tokens.

The limit is the best of three readers with the same threads and as many bytes. They and all kernels of one table take turns,
call by call, and every call draws other routes, so that weights come from memory and disturbances hit all; medians count.
What the columns mean: scoreboard.py. By default two tables: all of 32 experts of one K2 layer, and a shard's 24 of 384.

Ours: cpu-native (or cpu-native:avx2 and so on for one instruction set), reference. torch-int4 is torch's INT4 operator, bf16
torch's products with weights rounded to bf16 (3.6 × the bytes). Rivals run as processes of their own and live outside this repository:
--rival NAME=COMMAND starts a command that speaks the lines of _Rival below; adapters/ has them for kt-kernel and llama.cpp.
"""

import argparse
import contextlib
import json
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import scoreboard
import torch
from safetensors.torch import save_file
from scoreboard import ExpertWeights, Load
from shard_process import Bf16Layer
from torch_int4 import TorchInt4Layer

from expertfleet.kernels import native
from expertfleet.kernels.expert_layer import ExpertLayer, ExpertShape
from expertfleet.kernels.grouped_gemm import grouped_gemm, make_backend

_READ_BYTES = 1 << 30
# After a call torch's threads spin for a while, and would take the next kernel's processors.
_PAUSE_S = 0.02

_OTHERS: dict[str, type[ExpertLayer]] = {"torch-int4": TorchInt4Layer, "bf16": Bf16Layer}

Call = Callable[[torch.Tensor, Load], torch.Tensor]  # x [tokens, H] → [N, H]


class Kernel(Protocol):
    def seconds(self, x: torch.Tensor, load: Load) -> float: ...

    def error(self, x: torch.Tensor, load: Load, experts: Sequence[ExpertWeights]) -> float: ...


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    shape = ExpertShape(options.hidden, options.width, 32)
    device = options.device or _processor()
    table = scoreboard.Table(device, options.results, f"torch {torch.__version__}, {options.threads} threads")
    readers = Readers()
    for held, total in options.tables:
        options.all_experts = total
        experts = scoreboard.random_experts(shape, held, options.distinct)
        kernels: dict[str, Kernel] = {}
        with tempfile.TemporaryDirectory(prefix="bench") as folder, contextlib.ExitStack() as ending:
            kernels |= {name: _Here(_call(name, shape, experts)) for name in options.kernels}
            for each in options.rival if held == total else ():
                rival = _Rival(each, shape, experts, options, Path(folder))
                ending.callback(rival.end)  # also after an error: a stopped process would stay for ever
                kernels[rival.name] = rival
            for tokens in options.tokens:
                _measure(table, device, kernels, readers, shape, experts, tokens, options)
    table.save()


def _parser() -> argparse.ArgumentParser:
    parser = scoreboard.parser(__doc__)
    parser.set_defaults(tables=[(32, 32), (24, 384)])
    parser.add_argument("--kernels", nargs="+", default=["cpu-native", "torch-int4", "bf16"])
    parser.add_argument("--rival", action="append", default=[], metavar="NAME=COMMAND")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=3.0, help="for each kernel and number of tokens")
    parser.add_argument("--device", help="the machine's name in the table (default: what the processor says)")
    parser.add_argument(
        "--tables", nargs="+", type=lambda text: tuple(map(int, text.split("/"))), metavar="HELD/ALL",
        help="experts held and chosen among, a table each",
    )  # fmt: skip
    return parser


def _measure(
    table: scoreboard.Table,
    device: str,
    kernels: dict[str, Kernel],
    readers: "Readers",
    shape: ExpertShape,
    experts: Sequence[ExpertWeights],
    tokens: int,
    options: argparse.Namespace,
) -> None:
    times: dict[str, list[float]] = {name: [] for name in kernels}
    hits: list[int] = []
    rates: list[list[float]] = []
    first = scoreboard.draw_load(tokens, len(experts), options)
    x = torch.randn(tokens, shape.hidden).bfloat16()
    # The first call of each is not timed.
    errors = {name: kernel.error(x, first, experts) for name, kernel in kernels.items()}
    stop = time.monotonic() + options.seconds * len(kernels)
    while time.monotonic() < stop or not hits:
        load = scoreboard.draw_load(tokens, len(experts), options, draw=len(hits) + 1)
        hits.append(load.hit)
        for name, kernel in kernels.items():
            time.sleep(_PAUSE_S)
            times[name].append(kernel.seconds(x, load))
        rates.append(readers.rates(scoreboard.bytes_of(experts[0]) * load.hit))
    limit = max(map(statistics.median, zip(*rates, strict=True)))
    own_bytes = [scoreboard.bytes_of(experts[0]) * hit for hit in hits]
    for name in kernels:
        told = scoreboard.line(
            device,
            name,
            options.threads,
            shape,
            len(experts),
            first,
            own_bytes,
            times[name],
            limit,
            "0",
            errors[name],
            options,
        )
        table.add(told)


class _Here:
    """A kernel of this process."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def seconds(self, x: torch.Tensor, load: Load) -> float:
        start = time.perf_counter()
        self._call(x, load)
        return time.perf_counter() - start

    def error(self, x: torch.Tensor, load: Load, experts: Sequence[ExpertWeights]) -> float:
        return scoreboard.relative_error(self._call(x, load), x, load, experts)


def _call(name: str, shape: ExpertShape, experts: Sequence[ExpertWeights]) -> Call:
    layer = _OTHERS[name](shape) if name in _OTHERS else _new_layer(name, shape)
    began = time.perf_counter()
    for expert_id, three in enumerate(experts):
        layer.add(expert_id, *three)
    own = sum(map(scoreboard.bytes_of, experts))
    rate = own / (time.perf_counter() - began) / 1e9
    print(f"# {name}: packed at {rate:.2f} GB/s, holds {layer.bytes_held / own:.3f} of the bytes", file=sys.stderr)

    return lambda x, load: grouped_gemm(x, load.rows, load.experts, layer)


def _new_layer(name: str, shape: ExpertShape) -> ExpertLayer:
    backend_name, _, instruction_set = name.partition(":")
    backend = make_backend(
        backend_name, "cpu", torch.bfloat16, shape.hidden, shape.width, 32, instruction_set=instruction_set or None
    )
    print(f"# {backend.description}", file=sys.stderr)
    return backend.new_layer()


class _Rival:
    """A process that loads a checkpoint of one layer and times itself; one JSON object per line each way.

    1. We write the experts in K2's names to a safetensors file and say ``{"folder", "hidden", "width", "experts", "top_k",
    "threads", "most_tokens"}``; it answers ``{"ready": what it is}``. 2. For every call ``{"x": FILE, "experts": [[ids of
    a token's top-k]...]}``; it answers ``{"seconds": s}``, and where ``"result": FILE`` is asked for it writes the sum of each
    token's experts, all with weight 1, as a tensor [tokens, hidden]. 3. The end of its input ends it.
    """

    def __init__(
        self, text: str, shape: ExpertShape, experts: Sequence[ExpertWeights], options: argparse.Namespace, folder: Path
    ) -> None:
        self.name, _, command = text.partition("=")
        if not command:
            sys.exit(f"bench_experts_cpu: --rival {text!r} wants NAME=COMMAND")
        self._folder = folder
        _write_checkpoint(experts, folder)
        self._process = subprocess.Popen(shlex.split(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        told = self._ask(
            {
                "folder": str(folder),
                "hidden": shape.hidden,
                "width": shape.width,
                "experts": len(experts),
                "top_k": options.top_k,
                "threads": options.threads,
                "most_tokens": max(options.tokens),
            }
        )
        print(f"# {self.name}: {told['ready']}", file=sys.stderr)

    def seconds(self, x: torch.Tensor, load: Load) -> float:
        return float(self._ask(self._job(x, load))["seconds"])

    def _awake(self, awake: bool) -> None:
        """A rival's threads spin while they wait; it is stopped unless it is asked something."""
        self._process.send_signal(signal.SIGCONT if awake else signal.SIGSTOP)

    def error(self, x: torch.Tensor, load: Load, experts: Sequence[ExpertWeights]) -> float:
        result = self._folder / "y.pt"
        self._ask(self._job(x, load) | {"result": str(result)})
        found = torch.load(result)[:1].double()
        one = Load(1, load.rows[load.rows == 0], load.experts[load.rows == 0])
        wanted = scoreboard.exact(x, one, experts).sum(0, keepdim=True)
        return float((found - wanted).norm() / wanted.norm())

    def _job(self, x: torch.Tensor, load: Load) -> dict[str, Any]:
        rows = self._folder / "x.pt"
        torch.save(x, rows)
        return {"x": str(rows), "experts": load.experts.view(load.tokens, -1).tolist()}

    def end(self) -> None:
        assert self._process.stdin is not None
        self._awake(True)
        self._process.stdin.close()
        self._process.wait(60)

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._awake(True)
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("{"):  # libraries print as well
                answer: dict[str, Any] = json.loads(line)
                self._awake(False)
                return answer
        sys.exit(f"bench_experts_cpu: {self.name} ended with status {self._process.wait()}")


def _write_checkpoint(experts: Sequence[ExpertWeights], folder: Path) -> None:
    tensors = {}
    for index, three in enumerate(experts):
        for name, (words, scales) in zip(("gate", "up", "down"), three, strict=True):
            key = f"model.layers.1.mlp.experts.{index}.{name}_proj"
            tensors[f"{key}.weight_packed"], tensors[f"{key}.weight_scale"] = words.clone(), scales.clone()
            tensors[f"{key}.weight_shape"] = torch.tensor([words.shape[0], 8 * words.shape[1]], dtype=torch.int32)
    save_file(tensors, folder / "model.safetensors")


class Readers:
    """ExpertWeights ways of doing nothing but reading memory on all threads: a sum, a maximum, and the native kernel's vectors."""

    def __init__(self) -> None:
        self._memory = torch.zeros(_READ_BYTES, dtype=torch.uint8)
        self._begin = 0
        self._readers: list[Callable[[torch.Tensor], object]] = [
            lambda memory: memory.view(torch.int64).sum(),
            lambda memory: memory.view(torch.int64).max(),
        ]
        library = native.load()
        if isinstance(library, native.Native):
            self._readers.append(lambda memory: library.read(memory, library.instruction_sets[0]))

    def rates(self, num_bytes: int) -> list[float]:
        """GB/s of each over as many bytes, never those that were read last."""
        found = []
        for reader in self._readers:
            count = min(num_bytes, _READ_BYTES) // 4096 * 4096
            if self._begin + count > _READ_BYTES:
                self._begin = 0
            memory = self._memory[self._begin : self._begin + count]
            self._begin += count
            time.sleep(_PAUSE_S)
            start = time.perf_counter()
            reader(memory)
            found.append(count / (time.perf_counter() - start) / 1e9)
        return found


def _processor() -> str:
    """The processor's name, and what the best kernel for it is."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    library = native.load()
    best = library.instruction_sets[0] if isinstance(library, native.Native) else "no native kernel"
    return f"{names[0] if names else 'unknown'} x{len(names)} {best}".replace(",", " ")


if __name__ == "__main__":
    main()
