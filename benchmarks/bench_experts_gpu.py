# mypy: disable-error-code="import-not-found, import-untyped, no-untyped-call"
"""The scoreboard of the INT4 expert kernels on an NVIDIA GPU: one CSV line per kernel, number of experts and of tokens.

The limit is the best of three readers on this device, taken just before. A call is a CUDA graph of the whole grouped
GEMM, block list included; before each the L2 cache is overwritten. What the columns mean: scoreboard.py.

Rivals stand beside ours; they live outside this repository and are never copied into it. Each is --rival NAME=FILE.py
with one of the adapters here, which say more:
  adapters/w4a16_humming.py   pip install --no-deps humming-kernels==0.1.19, cuda-bindings and CUDA's headers
  adapters/w4a16_lmdeploy.py  git clone https://github.com/InternLM/lmdeploy, and LMDEPLOY=FOLDER
  adapters/w4a16_vllm.py      git clone https://github.com/vllm-project/vllm at v0.33.0, and VLLM=FOLDER; or installed
or with a file of yours that has a function ``prepare(experts, hidden, width, device)``; experts: the checkpoint's
((words, scales) of gate, up, down) of each. It returns ``call(x, route_rows, route_experts) -> [N, H]`` that may be
captured into a graph: each route's own result, unweighted, in the routes' order; rows and experts int32 on the device.

``--tune`` times tiles instead and prints the entry for kernels/triton_configs.py. No GPU figure has been taken yet.
"""

import argparse
import importlib.util
import itertools
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence

import scoreboard
import torch
from scoreboard import ExpertWeights, Load

from expertfleet.kernels import int4
from expertfleet.kernels.expert_layer import ExpertShape
from expertfleet.kernels.triton_configs import DEFAULT, ROWS, Config, Tile
from expertfleet.kernels.triton_layout import ExpertLayout, lay_out

Call = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]  # x, route_rows, route_experts → [N, H]


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
    remark = f"torch {torch.__version__}, triton {_version('triton')}"
    table = None if options.tune else scoreboard.Table(torch.cuda.get_device_name(), options.results, remark)
    for held in options.experts:
        experts = scoreboard.random_experts(shape, held, options.distinct, "cuda")
        if table is None:
            _tune(shape, experts, options)
        else:
            _scoreboard(table, shape, experts, options)
    if table is not None:
        table.save()


def _parser() -> argparse.ArgumentParser:
    parser = scoreboard.parser(__doc__)
    parser.add_argument(
        "--experts", type=int, nargs="+", default=[384, 96, 48, 24], help="held, each a table of its own"
    )
    parser.add_argument("--all-experts", type=int, default=384, help="that the gate chooses among")
    parser.add_argument("--calls", type=int, default=50)
    parser.add_argument("--kernels", nargs="+", default=["ours", "ours-routes", "ours-blocks", "bf16"])
    parser.add_argument("--rival", action="append", default=[], metavar="NAME=FILE.py")
    parser.add_argument(
        "--tune", action="store_true", help="time tiles and print an entry for kernels/triton_configs.py"
    )
    return parser


def _scoreboard(
    table: scoreboard.Table, shape: ExpertShape, experts: Sequence[ExpertWeights], options: argparse.Namespace
) -> None:
    limit = bandwidth_limit()
    for name in [*options.kernels, *options.rival]:
        call = _kernel(name, shape, experts)
        for tokens in options.tokens:
            load = _load(tokens, len(experts), options)
            table.add(_line(name.split("=")[0], call, limit, shape, experts, load, options))
        del call  # the next kernel's weights need its memory


def _kernel(name: str, shape: ExpertShape, experts: Sequence[ExpertWeights]) -> Call:
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


def _ours(shape: ExpertShape, experts: Sequence[ExpertWeights], schedule: str, config: Config | None) -> Call:
    from expertfleet.kernels.triton_experts import ExpertTable, grouped_experts  # NOTE: not on machines without Triton

    layout = ExpertLayout(shape)
    blocks = [lay_out(layout, *three) for three in experts]
    table = ExpertTable(layout, torch.tensor([block.data_ptr() for block in blocks], device="cuda"))

    def call(x: torch.Tensor, rows: torch.Tensor, slots: torch.Tensor, _kept: object = blocks) -> torch.Tensor:
        return grouped_experts(x, rows, slots, table, schedule, config)  # type: ignore[arg-type]

    return call


def _bf16(experts: Sequence[ExpertWeights]) -> Call:
    """torch's own grouped product on dequantised weights (3.6 × the bytes): what INT4 has to beat."""
    first, second = (_dequantized(experts, parts).transpose(1, 2) for parts in ((0, 1), (2,)))

    def call(x: torch.Tensor, rows: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        ordered, order = torch.sort(ids, stable=True)
        bounds = torch.arange(len(experts), device=x.device, dtype=torch.int32)
        ends = torch.searchsorted(ordered, bounds, right=True).int()
        gate, up = torch._grouped_mm(x[rows[order].long()], first, offs=ends).chunk(2, dim=1)
        y = torch._grouped_mm(torch.nn.functional.silu(gate) * up, second, offs=ends)
        return torch.empty_like(y).index_copy_(0, order, y)

    return call


def _dequantized(experts: Sequence[ExpertWeights], parts: Sequence[int]) -> torch.Tensor:
    """[E, out, in], the parts' outputs one after another. Filled in place: of K2's layer a GPU does not hold two."""
    scales = [experts[0][part][1] for part in parts]
    num_out, num_in = sum(map(len, scales)), experts[0][parts[0]][0].shape[1] * 8
    made = torch.empty(len(experts), num_out, num_in, dtype=torch.bfloat16, device=scales[0].device)
    for place, three in zip(made, experts, strict=True):
        torch.cat([int4.dequantize(*three[part], torch.bfloat16) for part in parts], out=place)
    return made


def _load(tokens: int, held: int, options: argparse.Namespace) -> Load:
    """As the kernels take it: int32 on the device."""
    load = scoreboard.draw_load(tokens, held, options)
    return Load(tokens, load.rows.int().cuda(), load.experts.int().cuda())


def _line(
    name: str,
    call: Call,
    limit: float,
    shape: ExpertShape,
    experts: Sequence[ExpertWeights],
    load: Load,
    options: argparse.Namespace,
) -> str:
    x = torch.randn(load.tokens, shape.hidden, device="cuda").bfloat16()
    times = timed(lambda: call(x, load.rows, load.experts), options.calls)
    error = scoreboard.relative_error(call(x, load.rows, load.experts), x, load, experts)
    own_bytes = [float(scoreboard.bytes_of(experts[0]) * load.hit)] * len(times)
    padding = _padding(name, load, len(experts))
    device = torch.cuda.get_device_name()
    return scoreboard.line(device, name, 0, shape, len(experts), load, own_bytes, times, limit, padding, error, options)


def _padding(name: str, load: Load, held: int) -> str:
    if not name.startswith("ours"):
        return ""
    from expertfleet.kernels.triton_configs import config_for
    from expertfleet.kernels.triton_experts import padding_rows

    schedule = name.partition("-")[2] or "auto"
    config = config_for(torch.cuda.get_device_name())
    return str(padding_rows(load.experts, held, schedule, config))  # type: ignore[arg-type]


def timed(run: Callable[[], object], calls: int) -> list[float]:
    """Seconds of a CUDA graph of ``run`` with a cold L2 cache."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
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
    return times[3:]


def bandwidth_limit() -> float:
    """GB/s of the best of three ways of reading 4 GB: a sum, a maximum, a copy (which counts both ways)."""
    values = torch.zeros(2**30, dtype=torch.float32, device="cuda")
    half = values[: 2**29]
    readers: list[tuple[Callable[[], object], int]] = [
        (values.sum, values.nbytes),
        (values.amax, values.nbytes),
        (lambda: values[2**29 :].copy_(half), values.nbytes),
    ]
    return max(num_bytes / statistics.median(timed(run, 10)) / 1e9 for run, num_bytes in readers)


def _tune(shape: ExpertShape, experts: Sequence[ExpertWeights], options: argparse.Namespace) -> None:
    """Times every tile of one projection while the other keeps its default; the best of each by rows a block."""
    best: dict[tuple[str, int], tuple[float, Tile]] = {}
    for rows, tile in itertools.product(ROWS, _tiles()):
        tokens = max(1, len(experts) * rows * 3 // 4 // options.top_k)  # routes that make blocks of this size
        load = _load(tokens, len(experts), argparse.Namespace(**(vars(options) | {"all_experts": len(experts)})))
        x = torch.randn(tokens, shape.hidden, device="cuda").bfloat16()
        for part in ("gate_up", "down"):
            config = Config(**{part: {**getattr(DEFAULT, part), rows: tile}})
            call = _ours(shape, experts, "blocks", config)
            times = timed(lambda call=call, x=x, load=load: call(x, load.rows, load.experts), options.calls)  # type: ignore[misc]
            median = statistics.median(times)
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
