"""vLLM's Triton kernel for INT4 experts, fused_moe_kernel_gptq_awq, as a rival of bench_experts_gpu.py:

    git clone --depth 1 --branch v0.33.0 https://github.com/vllm-project/vllm /some/where
    VLLM=/some/where python benchmarks/bench_experts_gpu.py --rival vllm=benchmarks/adapters/w4a16_vllm.py

or, without VLLM, from an installed vllm. Written against 0.33.0; vLLM itself would rather take Marlin where that runs.
From a checkout only model_executor/layers/fused_moe/fused_moe.py and its configs/ are read: all else that it imports is
a stub, and nothing is built. vLLM's CUDA operations are then missing: the block list comes from our two kernels and a
third below, SwiGLU's product from torch. An installed vllm uses its own for both; 0.33.0 wants another torch than this
project. Tiles are those that vLLM looks up, or else computes, for the shape. Its kernel finds route n's row at
n / top_k, so unless there is but one token the routes' rows are gathered first, within the timed call.
"""

import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import torch
import triton
import triton.language as tl
from scoreboard import ExpertWeights

from expertfleet.kernels import int4
from expertfleet.kernels.triton_blocks import block_list

_PACKAGE = "vllm.model_executor.layers.fused_moe"
_GROUP = 32

Blocks = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # sorted_token_ids, expert_ids, num_tokens_post_padded


@dataclass(frozen=True)
class Rival:
    kernels: ModuleType
    blocks: Callable[[torch.Tensor, int, int, bool], Blocks]  # as padded_blocks
    silu_mul: Callable[[torch.Tensor], torch.Tensor]  # [N, 2F] → [N, F]


def prepare(experts: Sequence[ExpertWeights], hidden: int, width: int, device: str) -> Callable[..., torch.Tensor]:
    rival = _from_checkout(Path(os.environ["VLLM"])) if "VLLM" in os.environ else _installed()
    gate_up, down = _stacked(experts, 0, 1), _stacked(experts, 2)

    def product(
        rows: torch.Tensor,
        weight: tuple[torch.Tensor, torch.Tensor],
        blocks: Blocks,
        top_k: int,
        config: dict[str, Any],
    ) -> torch.Tensor:
        codes, scales = weight
        result = rows.new_empty((len(rows) * top_k, 1, codes.shape[1]))
        kind = tl.float16 if rows.dtype is torch.float16 else tl.bfloat16
        rival.kernels.invoke_fused_moe_wna16_triton_kernel(
            rows, codes, result, scales, None, None, *blocks, False, top_k, config,
            compute_type=kind, use_int8_w8a16=False, use_int4_w4a16=True, block_shape=[0, _GROUP],
        )  # fmt: skip
        return result[:, 0]

    def call(x: torch.Tensor, route_rows: torch.Tensor, route_experts: torch.Tensor) -> torch.Tensor:
        (num_routes,) = route_experts.shape
        num_tokens, alone = min(len(x), num_routes), len(x) == 1
        shapes, top_k = (gate_up[0].shape, down[0].shape), triton.cdiv(num_routes, num_tokens)
        config = rival.kernels.try_get_optimal_moe_config(*shapes, top_k, "int4_w4a16", num_tokens, [0, _GROUP])
        blocks = rival.blocks(route_experts, len(experts), config["BLOCK_SIZE_M"], alone)
        rows = x if alone else x.index_select(0, route_rows)
        inner = product(rows, gate_up, blocks, num_routes if alone else 1, config)
        return product(rival.silu_mul(inner), down, blocks, 1, config)

    return call


def padded_blocks(route_experts: torch.Tensor, num_experts: int, block: int, one_token: bool) -> Blocks:
    """Blocks of ``block`` routes of one expert: the routes [B · block] (their number where a place is empty), each
    block's expert [B], and the places up to the last block in use. The routes of one token have blocks of their own.
    """
    (num_routes,) = route_experts.shape
    if one_token:
        ids, places = _one_by_one(num_routes, block, route_experts.device)
        return ids, route_experts, places
    blocks = block_list(route_experts, num_experts, block)
    (num_blocks,) = blocks.slots.shape
    ids, places = route_experts.new_empty(num_blocks * block), route_experts.new_empty(1)
    lists = (blocks.order, blocks.starts, blocks.counts)
    pad_kernel[(num_blocks,)](*lists, ids, places, num_routes, num_blocks, block, triton.next_power_of_2(block))
    return ids, blocks.slots, places


@functools.cache
def _one_by_one(num_routes: int, block: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.full((num_routes, block), num_routes, dtype=torch.int32, device=device)
    ids[:, 0] = torch.arange(num_routes, device=device)
    return ids.flatten(), torch.full((1,), ids.numel(), dtype=torch.int32, device=device)


@triton.jit
def pad_kernel(
    order, starts, counts, ids, places, num_routes, num_blocks, BLOCK: tl.constexpr, LANES: tl.constexpr
):  # fmt: skip
    block = tl.program_id(0)
    lanes = tl.arange(0, LANES)
    count = tl.load(counts + block)
    routes = tl.load(order + tl.load(starts + block) + lanes, mask=lanes < count, other=num_routes)
    tl.store(ids + block * BLOCK + lanes, routes, mask=lanes < BLOCK)
    following = tl.load(counts + block + 1, mask=block + 1 < num_blocks, other=0)
    tl.store(places, (block + 1) * BLOCK, mask=(count > 0) & (following == 0))


def _stacked(experts: Sequence[ExpertWeights], *parts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes uint8 [E, out, in / 2] and scales [E, out, in / 32], the parts' outputs one after another."""
    words, scales = (
        torch.stack([torch.cat([three[part][kind] for part in parts]) for three in experts]) for kind in (0, 1)
    )
    return int4.bytes_of(words), scales


def _installed() -> Rival:
    def blocks(route_experts: torch.Tensor, num_experts: int, block: int, one_token: bool) -> Blocks:
        found: Blocks = align(route_experts[:, None], block, num_experts)
        return found

    def silu_mul(both: torch.Tensor) -> torch.Tensor:
        result = both.new_empty((len(both), both.shape[1] // 2))
        torch.ops._C.silu_and_mul(result, both)
        return result

    kernels = importlib.import_module(f"{_PACKAGE}.fused_moe")
    align = importlib.import_module(f"{_PACKAGE}.moe_align_block_size").moe_align_block_size
    return Rival(kernels, blocks, silu_mul)


def _from_checkout(root: Path) -> Rival:
    def silu_mul(both: torch.Tensor) -> torch.Tensor:
        gate, up = both.chunk(2, dim=1)
        return torch.nn.functional.silu(gate).mul_(up)

    name = f"{_PACKAGE}.fused_moe"
    file = root / f"{name.replace('.', '/')}.py"
    if not file.is_file():
        sys.exit(f"w4a16_vllm: VLLM={root} is no checkout of vLLM: there is no {file}")
    sys.meta_path.insert(0, _Stubs(name, file))
    known: dict[str, dict[str, Any]] = {
        "vllm.envs": {"VLLM_BATCH_INVARIANT": False, "VLLM_TUNED_CONFIG_FOLDER": None},
        "vllm.triton_utils": {"triton": triton, "tl": tl},
        "vllm.platforms": {"current_platform": SimpleNamespace(is_cuda=lambda: True, is_rocm=lambda: False)},
        "vllm.utils.math_utils": {"next_power_of_2": triton.next_power_of_2},
        "vllm.utils.platform_utils": {"get_device_name_as_file_name": _device_name},
        _PACKAGE: {"get_config": lambda: None},
    }
    for stub, values in known.items():
        vars(importlib.import_module(stub)).update(values)
    return Rival(importlib.import_module(name), padded_blocks, silu_mul)


def _device_name() -> str:
    return torch.cuda.get_device_name().replace(" ", "_")


class _Stub(ModuleType):
    """Has every name."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock(name=name)


class _Stubs(MetaPathFinder, Loader):
    """Finds one module of vllm's in its file, and all others empty."""

    def __init__(self, real: str, file: Path) -> None:
        self._real, self._file = real, file

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name == self._real:
            return importlib.util.spec_from_file_location(name, self._file)
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] == "vllm" else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Stub(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass
