# mypy: disable-error-code="import-not-found, import-untyped"
"""Experts applied to routes on an NVIDIA GPU: y[n] = W2·(silu(W1·x[row_n]) ⊙ W3·x[row_n]), INT4 weights, bf16 rows.

Knows nothing of experts' ids, gates or the wire: a route is (row, slot), a slot is where an expert's block lies. The
contract is grouped_gemm.py's, with two differences that never waiting for the device brings: rows and slots are the
caller's promise, and a route to slot -1 gets a row of NaN. Two schedules give the same bits:
- *routes*: a program takes one route, nothing is sorted or padded in memory; for few routes (about one row an expert);
- *blocks*: a program takes up to 32 routes of one slot (triton_blocks.py), so that a weight is read once for all of them.
Every launch has a grid that depends on shapes alone, so a CUDA graph can hold it. There is no faster mode with other bits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import triton

from .triton_blocks import BlockList, block_list
from .triton_configs import Config, Tile, config_for, rows_a_block
from .triton_experts_kernel import down_kernel, gate_up_kernel
from .triton_layout import ExpertLayout, take_apart

Schedule = Literal["auto", "routes", "blocks"]

_MASK = 0x000F000F
INTERPRETED = not isinstance(gate_up_kernel, triton.runtime.JITFunction)


@dataclass(frozen=True)
class ExpertTable:
    """Where the experts lie; whoever makes it keeps the blocks alive."""

    layout: ExpertLayout
    addresses: torch.Tensor  # [S] int64, on the device


def grouped_experts(
    x: torch.Tensor,  # [R, H] bf16
    route_rows: torch.Tensor,  # [N] int32
    route_slots: torch.Tensor,  # [N] int32, -1 where no slot holds the expert
    experts: ExpertTable,
    schedule: Schedule = "auto",
    config: Config | None = None,
) -> torch.Tensor:  # [N, H] bf16
    num_routes = _check(x, route_rows, route_slots, experts)
    hidden, width = experts.layout.shape.hidden, experts.layout.shape.width
    if num_routes == 0:
        return x.new_empty((0, hidden))
    config = config_for(_device_name(x.device)) if config is None else config
    (num_slots,) = experts.addresses.shape
    route_major = _route_major(schedule, num_routes, config)
    block_r = 8 if route_major else rows_a_block(num_routes, num_slots)
    blocks = _one_by_one(route_slots) if route_major else block_list(route_slots, num_slots, block_r)
    # NOTE: Triton's interpreter cuts a float32 to bf16 where the device rounds it, so there torch does the rounding.
    kept = torch.float32 if INTERPRETED else torch.bfloat16
    inner, y = x.new_empty((num_routes, width), dtype=kept), x.new_empty((num_routes, hidden), dtype=kept)
    lists = (blocks.slots, blocks.starts, blocks.counts, blocks.order)
    tile = config.gate_up[block_r]
    gate_up_kernel[_grid(width, blocks, tile)](
        x, inner, experts.addresses, *lists, route_rows, _MASK,
        hidden, width, route_major, block_r, tile.block_out, tile.num_warps, tile.num_stages, INTERPRETED,
        num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    tile = config.down[block_r]
    down_kernel[_grid(hidden, blocks, tile)](
        inner.bfloat16(), y, experts.addresses, *lists, _MASK,
        hidden, width, route_major, block_r, tile.block_out, tile.num_warps, tile.num_stages, INTERPRETED,
        num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    return y.bfloat16()


def padding_rows(route_slots: torch.Tensor, num_slots: int, schedule: Schedule, config: Config) -> int:
    """Rows that the tensor cores compute and nobody wants; waits for the device. None of them is read from memory."""
    (num_routes,) = route_slots.shape
    if _route_major(schedule, num_routes, config):
        return 7 * num_routes
    block_r = rows_a_block(num_routes, num_slots)
    return block_r * int((block_list(route_slots, num_slots, block_r).counts > 0).sum()) - num_routes


def grouped_experts_reference(
    x: torch.Tensor,  # [R, H]
    route_rows: torch.Tensor,  # [N]
    route_slots: torch.Tensor,  # [N]
    layout: ExpertLayout,
    blocks: Sequence[torch.Tensor],  # the slots' blocks
) -> torch.Tensor:  # [N, H] float64
    """The same in float64, slot by slot, from the kernels' own layout."""
    result = torch.full((len(route_rows), layout.shape.hidden), torch.nan, dtype=torch.float64, device=x.device)
    for slot in sorted(set(route_slots.tolist()) - {-1}):
        places = (route_slots == slot).nonzero()[:, 0]
        gate, up, down = take_apart(layout, blocks[slot])
        rows = x[route_rows[places].long()].double()
        result[places] = (torch.nn.functional.silu(rows @ gate.t()) * (rows @ up.t())) @ down.t()
    return result


def _check(x: torch.Tensor, route_rows: torch.Tensor, route_slots: torch.Tensor, experts: ExpertTable) -> int:
    (num_routes,) = route_slots.shape
    hidden = experts.layout.shape.hidden
    assert x.shape[1:] == (hidden,), f"x is {tuple(x.shape)}, the layer has {hidden} inputs"
    assert x.dtype is torch.bfloat16, f"x is {x.dtype}, wanted bfloat16"
    assert x.is_contiguous(), f"x has strides {x.stride()}, wanted rows one after another"
    assert x.data_ptr() % 16 == 0, f"x begins at {x.data_ptr():#x}, wanted a multiple of 16"
    assert route_rows.shape == (num_routes,), f"{num_routes} slots, {tuple(route_rows.shape)} rows"
    for name, ids in (("route_rows", route_rows), ("route_slots", route_slots)):
        assert ids.dtype is torch.int32, f"{name} is {ids.dtype}, wanted int32"
        assert ids.is_contiguous(), f"{name} has strides {ids.stride()}"
    assert experts.addresses.dtype is torch.int64, f"addresses are {experts.addresses.dtype}, wanted int64"
    return num_routes


def _route_major(schedule: Schedule, num_routes: int, config: Config) -> bool:
    return schedule == "routes" or (schedule == "auto" and num_routes <= config.most_route_major)


def _one_by_one(route_slots: torch.Tensor) -> BlockList:
    """The route-major kernels read only the slots."""
    return BlockList(route_slots, route_slots, route_slots, route_slots)


def _grid(num_out: int, blocks: BlockList, tile: Tile) -> tuple[int, int]:
    return triton.cdiv(num_out, tile.block_out), blocks.slots.shape[0]


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
