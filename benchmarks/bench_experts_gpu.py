# mypy: disable-error-code="import-not-found, import-untyped, no-untyped-call"
"""The scoreboard of the INT4 expert kernels on an NVIDIA GPU: one CSV line per kernel, number of experts and of tokens.

One rule for all: bytes are the checkpoint's own (24,772,608 per K2 expert) of the experts hit, once per call, whatever a
kernel holds; TFLOPS count six products per route and weight, without padding; the limit is the best of three readers on
this device, taken just before; the error is ‖found − wanted‖ / ‖wanted‖ of some routes against float64 from the
checkpoint's numbers. A call is a CUDA graph of the whole grouped GEMM, block list included; before each the L2 cache is
overwritten. Experts are drawn by a Zipf-like law (--skew), shuffled; a subset of 24, 48 or 96 experts gets its share of
tokens × top-8 routes, as a shard does.

Rivals stand beside ours when they can be imported; they live outside this repository and are never copied into it:
  humming   pip install --no-deps humming-kernels==0.1.19     (0.6 MB; wants cuda-bindings, cuda-core beside torch)
  lmdeploy  git clone https://github.com/InternLM/lmdeploy    lmdeploy/pytorch/kernels/cuda/compressed_tensors_w4a16.py
  vllm      git clone https://github.com/vllm-project/vllm    vllm/model_executor/layers/fused_moe/fused_moe.py
Each is given as --rival NAME=FILE.py, a file of yours outside the tree with one function ``prepare(experts, hidden, width,
device)``; experts: the checkpoint's ((words, scales) of gate, up, down) of each. It returns ``call(x, route_rows,
route_experts) -> [N, H]`` that may be captured into a graph. Their versions' signatures differ, so no adapter is kept here.

``--tune`` times tiles instead and prints the entry for kernels/triton_configs.py. No GPU figure has been taken with this yet.
"""

import argparse
import importlib.util
import itertools
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from expertfleet.kernels import int4
from expertfleet.kernels.expert_layer import ExpertShape, Projection
from expertfleet.kernels.triton_configs import DEFAULT, ROWS, Config, Tile
from expertfleet.kernels.triton_layout import ExpertLayout, lay_out

COLUMNS = (
    "device,kernel,hidden,width,experts_held,experts_all,top_k,tokens,routes,experts_hit,median_us,p90_us,gb_per_s"
)
COLUMNS += ",limit_gb_per_s,percent_of_limit,tflops,padding_rows,relative_error"
CHECKED_ROUTES = 4

Three = tuple[Projection, Projection, Projection]
Call = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]  # x, route_rows, route_experts → [N, H]


@dataclass(frozen=True)
class Load:
    """Routes of ``tokens`` tokens that fall to the experts held."""

    tokens: int
    rows: torch.Tensor  # [N] int32
    experts: torch.Tensor  # [N] int32, positions among the experts held


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    if not torch.cuda.is_available():
        sys.exit(
            f"bench_experts_gpu: torch {torch.__version__} sees no CUDA device; this script measures on a GPU only"
        )
    if importlib.util.find_spec("triton") is None:
        sys.exit("bench_experts_gpu: Triton is missing: pip install 'expertfleet[gpu]'")
    torch.manual_seed(options.seed)
    shape = ExpertShape(options.hidden, options.width, 32)
    for held in options.experts:
        distinct = [_random_expert(shape) for _ in range(min(held, options.distinct))]
        experts = [distinct[position % len(distinct)] for position in range(held)]
        if options.tune:
            _tune(shape, experts, options)
        else:
            _scoreboard(shape, experts, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=7168)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument(
        "--experts", type=int, nargs="+", default=[384, 96, 48, 24], help="held, each a table of its own"
    )
    parser.add_argument("--all-experts", type=int, default=384, help="that the gate chooses among")
    parser.add_argument("--top-k", type=int, default=8)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128, 256])
    parser.add_argument("--skew", type=float, default=0.4, help="exponent of the experts' popularity, 0: uniform")
    parser.add_argument(
        "--distinct", type=int, default=8, help="different random experts; the others have copies of them"
    )
    parser.add_argument("--calls", type=int, default=50)
    parser.add_argument("--kernels", nargs="+", default=["ours", "ours-routes", "ours-blocks", "bf16"])
    parser.add_argument("--rival", action="append", default=[], metavar="NAME=FILE.py")
    parser.add_argument(
        "--tune", action="store_true", help="time tiles and print an entry for kernels/triton_configs.py"
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser


def _random_expert(shape: ExpertShape) -> Three:
    def projection(num_out: int, num_in: int) -> Projection:
        scales = torch.rand(num_out, num_in // 32, device="cuda").mul_(0.01).add_(0.001).bfloat16()
        return torch.randint(-(2**31), 2**31, (num_out, num_in // 8), device="cuda").int(), scales

    up, down = (shape.width, shape.hidden), (shape.hidden, shape.width)
    return projection(*up), projection(*up), projection(*down)


def _scoreboard(shape: ExpertShape, experts: Sequence[Three], options: argparse.Namespace) -> None:
    limit = bandwidth_limit()
    print(f"# torch {torch.__version__}, triton {_version('triton')}, read limit {limit:.0f} GB/s", file=sys.stderr)
    print(COLUMNS, flush=True)
    for name in [*options.kernels, *options.rival]:
        call = _kernel(name, shape, experts)
        for tokens in options.tokens:
            print(_line(name.split("=")[0], call, limit, shape, experts, _load(tokens, len(experts), options), options))
            sys.stdout.flush()


def _kernel(name: str, shape: ExpertShape, experts: Sequence[Three]) -> Call:
    if name.startswith("ours"):
        return _ours(shape, experts, {"ours": "auto", "ours-routes": "routes", "ours-blocks": "blocks"}[name], None)
    if name == "bf16":
        return _bf16(experts)
    file = name.partition("=")[2]
    spec = importlib.util.spec_from_file_location("rival", file)
    if spec is None or spec.loader is None:
        sys.exit(
            f"bench_experts_gpu: --rival {name!r} wants NAME=FILE.py; ours are ours, ours-routes, ours-blocks, bf16"
        )
    rival = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rival)
    call: Call = rival.prepare(experts, shape.hidden, shape.width, "cuda")
    return call


def _ours(shape: ExpertShape, experts: Sequence[Three], schedule: str, config: Config | None) -> Call:
    from expertfleet.kernels.triton_experts import ExpertTable, grouped_experts  # NOTE: not on machines without Triton

    layout = ExpertLayout(shape)
    blocks = [lay_out(layout, *three) for three in experts]
    table = ExpertTable(layout, torch.tensor([block.data_ptr() for block in blocks], device="cuda"))

    def call(x: torch.Tensor, rows: torch.Tensor, slots: torch.Tensor, _kept: object = blocks) -> torch.Tensor:
        return grouped_experts(x, rows, slots, table, schedule, config)  # type: ignore[arg-type]

    return call


def _bf16(experts: Sequence[Three]) -> Call:
    """torch's own grouped product on dequantised weights (3.6 × the bytes): what INT4 has to beat."""
    both = [torch.cat([int4.dequantize(*part, torch.bfloat16) for part in three[:2]]) for three in experts]
    first = torch.stack(both).transpose(1, 2)  # [E, H, 2F], inputs one after another in memory
    second = torch.stack([int4.dequantize(*three[2], torch.bfloat16) for three in experts]).transpose(1, 2)

    def call(x: torch.Tensor, rows: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        ordered, order = torch.sort(ids, stable=True)
        bounds = torch.arange(len(experts), device=x.device, dtype=torch.int32)
        ends = torch.searchsorted(ordered, bounds, right=True).int()
        gate, up = torch._grouped_mm(x[rows[order].long()], first, offs=ends).chunk(2, dim=1)
        y = torch._grouped_mm(torch.nn.functional.silu(gate) * up, second, offs=ends)
        return torch.empty_like(y).index_copy_(0, order, y)

    return call


def _load(tokens: int, held: int, options: argparse.Namespace) -> Load:
    """The same routes for every kernel. A shard's experts are a random part of all of them."""
    generator = torch.Generator().manual_seed(options.seed * 1000 + tokens)
    total = max(options.all_experts, held)
    popularity = torch.arange(1, total + 1).double().pow(-options.skew)[torch.randperm(total, generator=generator)]
    chosen = torch.multinomial(popularity.expand(tokens, -1), options.top_k, generator=generator)  # [T, K]
    rows = torch.arange(tokens)[:, None].expand_as(chosen)
    mine = chosen < held
    if not mine.any():
        chosen, mine = chosen % held, torch.ones_like(mine)
    return Load(tokens, rows[mine].int().cuda(), chosen[mine].int().cuda())


def _line(
    name: str,
    call: Call,
    limit: float,
    shape: ExpertShape,
    experts: Sequence[Three],
    load: Load,
    options: argparse.Namespace,
) -> str:
    x = torch.randn(load.tokens, shape.hidden, device="cuda").bfloat16()
    median, p90 = timed(lambda: call(x, load.rows, load.experts), options.calls)
    hit, routes = len(set(load.experts.tolist())), len(load.rows)
    own_bytes = sum(part.nbytes for projection in experts[0] for part in projection) * hit
    speed, flops = own_bytes / median / 1e9, 6 * routes * shape.hidden * shape.width / median / 1e12
    error = _error(call(x, load.rows, load.experts), x, load, experts)
    counts = f"{len(experts)},{options.all_experts},{options.top_k},{load.tokens},{routes},{hit}"
    times = f"{median * 1e6:.1f},{p90 * 1e6:.1f},{speed:.0f},{limit:.0f},{100 * speed / limit:.1f},{flops:.2f}"
    device = torch.cuda.get_device_name()
    padding = _padding(name, load, len(experts))
    return f"{device},{name},{shape.hidden},{shape.width},{counts},{times},{padding},{error:.2e}"


def _padding(name: str, load: Load, held: int) -> str:
    if not name.startswith("ours"):
        return ""
    from expertfleet.kernels.triton_configs import config_for
    from expertfleet.kernels.triton_experts import padding_rows

    schedule = name.partition("-")[2] or "auto"
    config = config_for(torch.cuda.get_device_name())
    return str(padding_rows(load.experts, held, schedule, config))  # type: ignore[arg-type]


def _error(found: torch.Tensor, x: torch.Tensor, load: Load, experts: Sequence[Three]) -> float:
    wanted = []
    for row, expert in zip(load.rows[:CHECKED_ROUTES].tolist(), load.experts[:CHECKED_ROUTES].tolist(), strict=True):
        gate, up, down = (int4.dequantize(*projection, torch.float64) for projection in experts[expert])
        inputs = x[row].double()
        wanted.append(down @ (torch.nn.functional.silu(gate @ inputs) * (up @ inputs)))
    exact = torch.stack(wanted)
    return float((found[: len(exact)].double() - exact).norm() / exact.norm())


def timed(run: Callable[[], object], calls: int) -> tuple[float, float]:
    """Seconds, median and p90, of a CUDA graph of ``run`` with a cold L2 cache."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            run()  # compiles, and lets libraries make their workspaces
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    flush = torch.empty(2 * torch.cuda.get_device_properties().L2_cache_size, dtype=torch.uint8, device="cuda")
    times = []
    for _ in range(calls + 3):
        flush.zero_()
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) / 1e3)
    times = sorted(times[3:])
    return statistics.median(times), times[min(len(times) - 1, int(0.9 * len(times)))]


def bandwidth_limit() -> float:
    """GB/s of the best of three ways of reading 4 GB: a sum, a maximum, a copy (which counts both ways)."""
    values = torch.zeros(2**30, dtype=torch.float32, device="cuda")
    half = values[: 2**29]
    readers: list[tuple[Callable[[], object], int]] = [
        (values.sum, values.nbytes),
        (values.amax, values.nbytes),
        (lambda: values[2**29 :].copy_(half), values.nbytes),
    ]
    return max(num_bytes / timed(run, 10)[0] / 1e9 for run, num_bytes in readers)


def _tune(shape: ExpertShape, experts: Sequence[Three], options: argparse.Namespace) -> None:
    """Times every tile of one projection while the other keeps its default; the best of each by rows a block."""
    best: dict[tuple[str, int], tuple[float, Tile]] = {}
    for rows, tile in itertools.product(ROWS, _tiles()):
        tokens = max(1, len(experts) * rows * 3 // 4 // options.top_k)  # routes that make blocks of this size
        load = _load(tokens, len(experts), argparse.Namespace(**(vars(options) | {"all_experts": len(experts)})))
        x = torch.randn(tokens, shape.hidden, device="cuda").bfloat16()
        for part in ("gate_up", "down"):
            config = Config(**{part: {**getattr(DEFAULT, part), rows: tile}})
            call = _ours(shape, experts, "blocks", config)
            median, _ = timed(lambda call=call, x=x, load=load: call(x, load.rows, load.experts), options.calls)  # type: ignore[misc]
            print(f"# {part} {rows} rows {tile}: {median * 1e6:.1f} us", file=sys.stderr)
            best[part, rows] = min(best.get((part, rows), (median, tile)), (median, tile), key=lambda pair: pair[0])
    parts = {part: {rows: best[part, rows][1] for rows in ROWS} for part in ("gate_up", "down")}
    print(f"    {torch.cuda.get_device_name()!r}: Config(gate_up={parts['gate_up']}, down={parts['down']}),")


def _tiles() -> Iterator[Tile]:
    for block_out, num_warps, num_stages in itertools.product((16, 32, 64, 128), (1, 2), (3, 4, 6)):
        if 16 * num_warps <= block_out <= 64 * num_warps:
            yield Tile(block_out, num_warps, num_stages)


def _version(module: str) -> str:
    return str(getattr(__import__(module), "__version__", "?"))


if __name__ == "__main__":
    main()
