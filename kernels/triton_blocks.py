# mypy: disable-error-code="import-not-found, import-untyped, untyped-decorator, no-untyped-def, no-untyped-call"
"""The block list: which expert's rows each program of the grouped GEMM takes, made on the device without asking the host.

Knows nothing of weights. Routes are sorted by slot (stable, so by slot and then by route); a slot's places are cut into
blocks of BLOCK_R. The number of blocks depends on the routes, which the host does not see, so the tables have as many
entries as any routes could need and the rest stay empty. Two small kernels, which compare every route with every other:
1. ``rank_kernel`` finds each route's place, its rank within its slot, and how many routes that slot has; 2. where the
rank begins a block, ``block_kernel`` finds which block. Beyond a few thousand routes torch's sort takes over.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

CHUNK = 32  # routes a program
SCAN = 256  # routes compared at a time
_MOST_COMPARED = 8192


@dataclass(frozen=True)
class BlockList:
    order: torch.Tensor  # [N] int32, place → route
    slots: torch.Tensor  # [B] int32, -1 beyond the last block
    starts: torch.Tensor  # [B] int32, the block's first place
    counts: torch.Tensor  # [B] int32, 0 beyond the last block


def most_blocks(num_routes: int, num_slots: int, block_r: int) -> int:
    """Blocks that any ``num_routes`` routes to ``num_slots`` slots, and to none of them, can need."""
    return min(num_routes, num_slots + 1) + num_routes // block_r


def block_list(route_slots: torch.Tensor, num_slots: int, block_r: int) -> BlockList:
    """route_slots [N] int32, -1 where no slot holds the expert; those routes have blocks too."""
    (num_routes,) = route_slots.shape
    assert route_slots.dtype is torch.int32, f"route_slots is {route_slots.dtype}, wanted int32"
    if num_routes > _MOST_COMPARED:
        return block_list_reference(route_slots, num_slots, block_r)
    num_blocks = most_blocks(num_routes, num_slots, block_r)
    order, ranks, totals = route_slots.new_empty((3, num_routes)).unbind()
    table = route_slots.new_zeros((3, num_blocks))
    table[0].fill_(-1)
    grid = (triton.cdiv(num_routes, CHUNK),)
    rank_kernel[grid](route_slots, order, ranks, totals, num_routes, CHUNK, SCAN, num_warps=4)
    block_kernel[grid](route_slots, ranks, totals, *table.unbind(), num_routes, block_r, CHUNK, SCAN, num_warps=4)
    return BlockList(order, *table.unbind())


def block_list_reference(route_slots: torch.Tensor, num_slots: int, block_r: int) -> BlockList:
    """The same in torch operations, none of which waits for the device either."""
    (num_routes,) = route_slots.shape
    num_blocks = most_blocks(num_routes, num_slots, block_r)
    _, order = torch.sort(route_slots, stable=True)
    counts = torch.zeros(num_slots + 1, dtype=torch.int64, device=route_slots.device)
    counts.scatter_add_(0, route_slots.long() + 1, torch.ones_like(order))
    ends, block_ends = counts.cumsum(0), ((counts + block_r - 1) // block_r).cumsum(0)
    blocks = torch.arange(num_blocks, device=route_slots.device)
    owners = torch.searchsorted(block_ends, blocks, right=True).clamp_(max=num_slots)  # slot + 1
    used = blocks < block_ends[-1]
    first_blocks = block_ends[owners] - (counts[owners] + block_r - 1) // block_r
    offsets = (blocks - first_blocks) * block_r
    starts = ends[owners] - counts[owners] + offsets
    table = (
        torch.where(used, owners - 1, -1),
        torch.where(used, starts, 0),
        torch.where(used, (counts[owners] - offsets).clamp(max=block_r), 0),
    )
    return BlockList(order.int(), *(part.int() for part in table))


@triton.jit
def rank_kernel(slots, order, ranks, totals, num_routes, CHUNK: tl.constexpr, SCAN: tl.constexpr):
    routes = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    valid = routes < num_routes
    mine = tl.load(slots + routes, mask=valid, other=-1)
    before = tl.zeros([CHUNK], tl.int32)  # routes to smaller slots
    rank = tl.zeros([CHUNK], tl.int32)  # earlier routes to the same slot
    total = tl.zeros([CHUNK], tl.int32)  # all routes to the same slot
    for first in range(0, num_routes, SCAN):
        others = first + tl.arange(0, SCAN)
        known = (others < num_routes)[None, :]
        theirs = tl.load(slots + others, mask=others < num_routes, other=-1)[None, :]
        same = known & (theirs == mine[:, None])
        before += tl.sum((known & (theirs < mine[:, None])).to(tl.int32), axis=1)
        rank += tl.sum((same & (others[None, :] < routes[:, None])).to(tl.int32), axis=1)
        total += tl.sum(same.to(tl.int32), axis=1)
    tl.store(order + before + rank, routes, mask=valid)
    tl.store(ranks + routes, rank, mask=valid)
    tl.store(totals + routes, total, mask=valid)


@triton.jit
def block_kernel(
    slots, ranks, totals,
    block_slots, block_starts, block_counts,
    num_routes, BLOCK_R: tl.constexpr, CHUNK: tl.constexpr, SCAN: tl.constexpr,
):  # fmt: skip
    routes = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    valid = routes < num_routes
    mine = tl.load(slots + routes, mask=valid, other=-1)
    rank = tl.load(ranks + routes, mask=valid, other=1)
    total = tl.load(totals + routes, mask=valid, other=0)
    block = rank // BLOCK_R
    place = rank
    for first in range(0, num_routes, SCAN):
        others = first + tl.arange(0, SCAN)
        theirs = tl.load(slots + others, mask=others < num_routes, other=0)
        begins = (others < num_routes) & (tl.load(ranks + others, mask=others < num_routes, other=1) % BLOCK_R == 0)
        smaller = (others < num_routes)[None, :] & (theirs[None, :] < mine[:, None])
        block += tl.sum((smaller & begins[None, :]).to(tl.int32), axis=1)
        place += tl.sum(smaller.to(tl.int32), axis=1)
    leads = valid & (rank % BLOCK_R == 0)
    tl.store(block_slots + block, mine, mask=leads)
    tl.store(block_starts + block, place, mask=leads)
    tl.store(block_counts + block, tl.minimum(total - rank, BLOCK_R), mask=leads)
