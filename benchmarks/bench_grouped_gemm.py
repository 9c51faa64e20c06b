"""Times the grouped expert GEMM and prints CSV: one line per backend and number of tokens.

GB/s counts the checkpoint's own bytes of the experts hit, once per call, TFLOPS the six products per route and weight.
Each call works on another of several layers, so that weights come from memory and not from a cache. The error is
against the float64 reference on a few routes.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence

import torch

from expertfleet.kernels import int4
from expertfleet.kernels.backend import NAMES
from expertfleet.kernels.expert_layer import ExpertLayer, Projection
from expertfleet.kernels.grouped_gemm import Backend, grouped_gemm, grouped_gemm_reference, make_backend

HEADER = "backend,dtype,threads,hidden,width,experts,top_k,tokens,median_ms,p90_ms,gb_per_s,tflops,relative_error"
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}

Three = tuple[Projection, Projection, Projection]


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    dtype = DTYPES[options.dtype]
    print(f"# {torch.__version__} {torch.backends.cpu.get_cpu_capability()}", file=sys.stderr)
    print(HEADER)
    for name in options.backends:
        backend = make_backend(name, "cpu", dtype, options.hidden, options.width, options.group_size)
        print(f"# {backend.description}", file=sys.stderr)
        weights = [_random_expert(backend) for _ in range(options.experts)]
        layers = [_layer(backend, weights) for _ in range(options.layers)]
        for num_tokens in options.tokens:
            print(_measured(backend, layers, weights, num_tokens, options), flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--backends", nargs="+", default=["cpu-int4pack"], choices=NAMES)
    parser.add_argument("--dtype", default="bfloat16", choices=sorted(DTYPES))
    parser.add_argument("--hidden", type=int, default=7168)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--group-size", type=int, default=32)
    parser.add_argument("--experts", type=int, default=8, help="held per layer")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--top-k", type=int, default=8, help="routes per token, to different experts")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--calls", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    return parser


def _random_expert(backend: Backend) -> Three:
    hidden, width, group = backend.shape.hidden, backend.shape.width, backend.shape.group_size

    def projection(num_out: int, num_in: int) -> Projection:
        scales = torch.rand(num_out, num_in // group).mul_(0.01).add_(0.001).bfloat16()
        return int4.pack(torch.randint(0, 16, (num_out, num_in), dtype=torch.uint8)), scales

    return projection(width, hidden), projection(width, hidden), projection(hidden, width)


def _layer(backend: Backend, weights: list[Three]) -> ExpertLayer:
    layer = backend.new_layer()
    for expert_id, three in enumerate(weights):
        layer.add(expert_id, *three)
    return layer


def _measured(
    backend: Backend, layers: list[ExpertLayer], weights: list[Three], num_tokens: int, options: argparse.Namespace
) -> str:
    num_experts, top_k = len(weights), min(options.top_k, len(weights))
    x = torch.randn(num_tokens, backend.shape.hidden).to(backend.dtype)
    rows = torch.arange(num_tokens).repeat_interleave(top_k)
    experts = torch.cat([torch.randperm(num_experts)[:top_k] for _ in range(num_tokens)])
    times = []
    for call in range(options.calls + 1):
        start = time.perf_counter()
        result = grouped_gemm(x, rows, experts, layers[call % len(layers)])
        times.append(time.perf_counter() - start)
    times = sorted(times[1:])
    median, p90 = statistics.median(times), times[min(len(times) - 1, int(len(times) * 0.9))]
    own_bytes = sum(part.nbytes for projection in weights[0] for part in projection) * len(set(experts.tolist()))
    flops = 6 * len(rows) * backend.shape.hidden * backend.shape.width
    wanted = grouped_gemm_reference(x, rows[:2], experts[:2], dict(enumerate(weights)))
    error = float((result[:2].double() - wanted).norm() / wanted.norm())
    shape = f"{backend.shape.hidden},{backend.shape.width},{num_experts},{top_k},{num_tokens}"
    speed = f"{own_bytes / median / 1e9:.2f},{flops / median / 1e12:.4f}"
    start_of_line = f"{backend.name},{options.dtype},{options.threads},{shape}"
    return f"{start_of_line},{median * 1e3:.3f},{p90 * 1e3:.3f},{speed},{error:.2e}"


if __name__ == "__main__":
    main()
