"""LMDeploy's Triton kernels for compressed-tensors W4A16 experts as a rival of bench_experts_gpu.py:

    git clone https://github.com/InternLM/lmdeploy /some/where
    LMDEPLOY=/some/where python benchmarks/bench_experts_gpu.py --rival lmdeploy=benchmarks/adapters/w4a16_lmdeploy.py

Written against commits dac513d and 18d0188; release 0.16.0 does not have the file yet. LMDeploy itself is neither
installed nor imported: its packages are entered without what their __init__ would bring along, and the kernels then
want torch, triton and packaging alone. They take the checkpoint's layout. Whether a program takes one route or a block
of sorted ones follows LMDeploy's own rules. Its route-major kernel finds route n's row at n / top_k, so unless there is
but one token the routes' rows are gathered before it, within the timed call; its sorted kernels gather by themselves.
"""

import functools
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from scoreboard import ExpertWeights

_KERNELS = "lmdeploy.pytorch.kernels.cuda.compressed_tensors_w4a16"


def prepare(experts: Sequence[ExpertWeights], hidden: int, width: int, device: str) -> Callable[..., torch.Tensor]:
    kernels = _kernels()
    gate_up, down = _stacked(experts, 0, 1), _stacked(experts, 2)

    def call(x: torch.Tensor, route_rows: torch.Tensor, route_experts: torch.Tensor) -> torch.Tensor:
        (num_routes,) = route_experts.shape
        inner, result = x.new_empty((num_routes, 2 * width)), x.new_empty((num_routes, hidden))
        if kernels._should_use_route_w4a16(num_routes, len(experts)):
            product = kernels.fused_moe_w4a16_route_launcher
            alone = len(x) == 1
            rows = x if alone else x.index_select(0, route_rows)
            product(rows, *gate_up, inner, route_experts, top_k=num_routes if alone else 1, reindex_a=alone)
            product(kernels.silu_and_mul(inner), *down, result, route_experts, top_k=1, reindex_a=False)
            return result
        order, places = _sorted(kernels, x, route_experts, len(experts))
        product = functools.partial(kernels.fused_moe_w4a16_kernel_launcher, **places)
        rows = route_rows.index_select(0, order)
        product(x, *gate_up, inner, rows, reindex_a=True, reindex_c=False)
        product(kernels.silu_and_mul(inner), *down, result, order, reindex_a=False, reindex_c=True)
        return result

    return call


def _sorted(
    kernels: ModuleType, x: torch.Tensor, route_experts: torch.Tensor, num_experts: int
) -> tuple[torch.Tensor, dict[str, Any]]:
    """The routes in the experts' order, and where each expert's begin and end as the launcher takes it."""
    (num_routes,) = route_experts.shape
    ids = route_experts.long()[:, None]
    num_tokens = min(len(x), num_routes)  # no expert has more routes
    load = (num_tokens, num_routes, num_experts, kernels._use_hopper_w4a16(x.device))
    if not kernels._should_use_compact_w4a16(*load):
        order, starts, ends = kernels._get_sorted_idx(ids, num_experts)
        return order, {"exp_start": starts, "exp_end": ends, "num_tokens": num_tokens}
    rows = kernels._w4a16_block_m(*load)
    order, *places = kernels._get_sorted_idx_blocks(ids, num_experts, num_experts, 0, rows)
    names = ("exp_start", "exp_end", "block_end", "block_expert_ids", "block_offsets")
    return order, dict(zip(names, places, strict=True)) | {"num_tokens": num_tokens, "block_m": rows}


def _stacked(experts: Sequence[ExpertWeights], *parts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Words [E, out, in / 8] and scales [E, out, in / 32] of every expert, the parts' outputs one after another."""
    words, scales = (
        torch.stack([torch.cat([three[part][kind] for part in parts]) for three in experts]) for kind in (0, 1)
    )
    return words, scales


def _kernels() -> ModuleType:
    root = os.environ.get("LMDEPLOY")
    if root is None or not (Path(root) / (_KERNELS.replace(".", "/") + ".py")).is_file():
        sys.exit(f"w4a16_lmdeploy: LMDEPLOY={root} is no checkout of LMDeploy with {_KERNELS}")
    names = _KERNELS.split(".")[:-1]
    for depth in range(1, len(names) + 1):
        package = ModuleType(".".join(names[:depth]))
        package.__path__ = [str(Path(root, *names[:depth]))]
        sys.modules[package.__name__] = package
    return importlib.import_module(_KERNELS)
