# mypy: disable-error-code="import-not-found, import-untyped, untyped-decorator, no-untyped-def, no-untyped-call"
"""What happens to rows around the experts on an NVIDIA GPU: gather, scatter, and the combine in the gate's rank order.

Knows nothing of experts. The grouped GEMM gathers and scatters by itself; the two here serve frames, whose rows come
sorted by shard. ``combine`` gives router/dispatch/combine.py's bits: product and sum are rounded apart (no fused multiply-add).
"""

import functools

import torch
import triton
import triton.language as tl

BLOCK = 1024  # values a program
MOVE_OPTIONS = {"num_warps": 4}
COMBINE_OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


def gather_rows(source: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """source [R, H], places [N] int32 → [N, H], row n from row places[n]."""
    num_rows, hidden = _check(source, places)
    target = source.new_empty((num_rows, hidden))
    if num_rows:
        gather_kernel[(num_rows, triton.cdiv(hidden, BLOCK))](source, target, places, hidden, BLOCK, **MOVE_OPTIONS)
    return target


def scatter_rows(source: torch.Tensor, places: torch.Tensor, target: torch.Tensor) -> None:
    """source [N, H] into target [R, H], row n to row places[n]; no two places are equal."""
    num_rows, hidden = _check(source, places)
    assert target.shape[1:] == source.shape[1:], f"target is {tuple(target.shape)}, source {tuple(source.shape)}"
    assert target.is_contiguous(), f"target has strides {target.stride()}"
    assert target.dtype is source.dtype, f"target is {target.dtype}, source {source.dtype}"
    assert source.shape[0] == num_rows, f"{source.shape[0]} rows, {num_rows} places"
    if num_rows:
        scatter_kernel[(num_rows, triton.cdiv(hidden, BLOCK))](source, target, places, hidden, BLOCK, **MOVE_OPTIONS)


def combine_rows(
    rows: torch.Tensor,  # [N, H] bf16 or fp32, one per route in any order
    topk_weights: torch.Tensor,  # [T, K] fp32, by rank
    places: torch.Tensor | None = None,  # [T, K] int32, where each route's row lies; T · K rows in order without it
) -> torch.Tensor:  # [T, H] fp32
    T, K = topk_weights.shape
    hidden = rows.shape[1]
    assert rows.is_contiguous(), f"rows have strides {rows.stride()}"
    assert topk_weights.is_contiguous(), f"topk_weights have strides {topk_weights.stride()}"
    assert topk_weights.dtype is torch.float32, f"topk_weights are {topk_weights.dtype}, wanted float32"
    if places is None:
        assert rows.shape[0] == T * K, f"{rows.shape[0]} rows for {T} tokens and {K} ranks"
    else:
        assert places.shape == (T, K), f"places are {tuple(places.shape)}, wanted {(T, K)}"
        assert places.dtype is torch.int32, f"places are {places.dtype}, wanted int32"
        assert places.is_contiguous(), f"places have strides {places.stride()}"
    sums = rows.new_empty((T, hidden), dtype=torch.float32)
    if T:
        placed = topk_weights if places is None else places
        combine_kernel[(T, triton.cdiv(hidden, BLOCK))](
            rows, placed, topk_weights, sums, hidden, BLOCK, K, places is not None, **COMBINE_OPTIONS
        )
    return sums


def combine_rows_reference(
    rows: torch.Tensor, topk_weights: torch.Tensor, places: torch.Tensor | None = None
) -> torch.Tensor:
    """The same in plain torch; equal bits."""
    T, K = topk_weights.shape
    ordered = rows if places is None else rows[places.flatten().long()]
    products = ordered.view(T, K, -1).float() * topk_weights[:, :, None]
    return functools.reduce(torch.add, products.unbind(1))


def _check(source: torch.Tensor, places: torch.Tensor) -> tuple[int, int]:
    _, hidden = source.shape
    (num_rows,) = places.shape
    assert source.is_contiguous(), f"source has strides {source.stride()}"
    assert places.dtype is torch.int32, f"places are {places.dtype}, wanted int32"
    assert places.is_contiguous(), f"places have strides {places.stride()}"
    return num_rows, hidden


@triton.jit
def gather_kernel(source, target, places, HIDDEN: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    place = tl.load(places + row).to(tl.int64)
    values = tl.load(source + place * HIDDEN + columns, mask=columns < HIDDEN)
    tl.store(target + row * HIDDEN + columns, values, mask=columns < HIDDEN)


@triton.jit
def scatter_kernel(source, target, places, HIDDEN: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    place = tl.load(places + row).to(tl.int64)
    values = tl.load(source + row * HIDDEN + columns, mask=columns < HIDDEN)
    tl.store(target + place * HIDDEN + columns, values, mask=columns < HIDDEN)


@triton.jit
def combine_kernel(
    rows, places, topk_weights, sums,
    HIDDEN: tl.constexpr, BLOCK: tl.constexpr, TOP_K: tl.constexpr, PLACED: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    first = token * TOP_K
    total = tl.zeros([BLOCK], tl.float32)
    for rank in tl.static_range(TOP_K):
        place = tl.load(places + first + rank).to(tl.int64) if PLACED else first + rank
        row = tl.load(rows + place * HIDDEN + columns, mask=columns < HIDDEN, other=0.0).to(tl.float32)
        product = row * tl.load(topk_weights + first + rank)
        total = product if rank == 0 else total + product
    tl.store(sums + token * HIDDEN + columns, total, mask=columns < HIDDEN)
