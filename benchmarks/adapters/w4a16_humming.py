"""Humming's indexed W4A16 GEMM, compiled at run time, as a rival of bench_experts_gpu.py:

    pip install --no-deps humming-kernels==0.1.19
    pip install cuda-bindings jinja2 packaging tabulate tqdm nvidia-cuda-cccl nvidia-cuda-nvcc
    python benchmarks/bench_experts_gpu.py --rival humming=benchmarks/adapters/w4a16_humming.py

The last two are for NVRTC, which wants their headers where neither /usr/local/cuda nor CUDA_HOME has a toolkit of
torch's CUDA version; kernels are kept in ~/.humming. Weights are repacked expert by expert, tiles are those of
Humming's heuristics for as many routes, and SwiGLU's product is its own input kernel. The block list, which Humming
leaves to its host, is w4a16_vllm.py's; as there, unless there is but one token the routes' rows are gathered first.
Humming has another format for weights without a code 0; random ones always have some.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from adapters.w4a16_vllm import Blocks, padded_blocks
from humming.forward import humming_forward, may_process_input
from humming.schema import BaseWeightSchema
from humming.transform import prepare_and_transform_humming_tensors, prepare_layer_config
from humming.tune import get_heuristics_config
from scoreboard import ExpertWeights

_CHECKPOINT = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "type": "int",
    "num_bits": 4,
    "strategy": "group",
    "group_size": 32,
}
_INDEXED = {"gemm_type": "indexed"}
_SILU_MUL = {"activation_type": "binary_split", "activation_impl": "a * b / (1.f + expf(-a))"}


@dataclass(frozen=True)
class Weight:
    """A projection of all experts as Humming has it."""

    config: Any  # humming.config.LayerConfig
    tensors: dict[str, torch.Tensor]
    locks: torch.Tensor

    def product(self, rows: torch.Tensor, blocks: Blocks, top_k: int, tuning: dict[str, Any]) -> torch.Tensor:
        ids, owners, places = blocks
        result: torch.Tensor = humming_forward(
            self.config, rows, **self.tensors, locks=self.locks, top_k=top_k,
            sorted_ids=ids, expert_ids=owners, num_tokens_padded=places,
            compute_config=json.dumps(_INDEXED), tuning_config=json.dumps(tuning),
        )  # fmt: skip
        return result


def prepare(experts: Sequence[ExpertWeights], hidden: int, width: int, device: str) -> Callable[..., torch.Tensor]:
    gate_up = _weight([three[:2] for three in experts], 2 * width, hidden, device)
    down = _weight([three[2:] for three in experts], hidden, width, device)

    def call(x: torch.Tensor, route_rows: torch.Tensor, route_experts: torch.Tensor) -> torch.Tensor:
        (num_routes,) = route_experts.shape
        alone = len(x) == 1
        tunings = [get_heuristics_config(weight.config, num_routes, **_INDEXED) for weight in (gate_up, down)]
        sizes = [tuning["block_shape"][0] for tuning in tunings]
        blocks = {size: padded_blocks(route_experts, len(experts), size, alone) for size in dict.fromkeys(sizes)}
        rows = x if alone else x.index_select(0, route_rows)
        both = gate_up.product(rows, blocks[sizes[0]], num_routes if alone else 1, tunings[0])
        inner, _, _ = may_process_input(down.config, both, **_SILU_MUL)
        return down.product(inner, blocks[sizes[1]], 1, tunings[1])

    return call


def _weight(
    experts: Sequence[Sequence[tuple[torch.Tensor, torch.Tensor]]], num_out: int, num_in: int, device: str
) -> Weight:
    """The projections of each expert, whose outputs lie one after another, repacked one expert at a time."""
    where = torch.device(device)
    shape = {"shape_n": num_out, "shape_k": num_in}
    shared: dict[str, Any] = {"torch_dtype": torch.bfloat16, "device": where}
    stacks = [len(scales) for _, scales in experts[0]]
    repacked = []
    for projections in experts:
        words, scales = (torch.cat(parts)[None] for parts in zip(*projections, strict=True))
        schema, tensors = BaseWeightSchema.from_config(_CHECKPOINT).convert_humming(
            {"weight_packed": words, "weight_scale": scales}, stacks, [num_in],
            torch.bfloat16, 1, where, convert_symmetric_integer=False,
        )  # fmt: skip
        _, tensors = prepare_and_transform_humming_tensors(
            tensors, **shape, weight_schema=schema, num_experts=1, **shared
        )
        repacked.append(tensors)
    config = prepare_layer_config(**shape, weight_schema=schema, num_experts=len(experts), **shared)
    tensors = {name: torch.cat([each[name] for each in repacked]) for name in repacked[0]}
    return Weight(config, tensors, torch.zeros(2048, dtype=torch.int32, device=where))
