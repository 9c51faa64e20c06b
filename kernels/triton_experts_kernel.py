# mypy: disable-error-code="import-not-found, import-untyped, untyped-decorator, no-untyped-def, no-untyped-call"
"""The device code of the grouped expert GEMM: two kernels, and each runs under both schedules.

Knows nothing of who asks or why. A program computes BLOCK_OUT outputs of up to BLOCK_R rows of one expert:
1. it walks through all inputs in order, 128 a step; 2. of every 32 of them it takes partial = codes · rows on tensor cores
and sum = fma(scale, partial, sum) in float32; codes are exact in bf16, so weights are never rounded; 3. it stores bf16.
Neither the order nor an instruction depends on BLOCK_R, BLOCK_OUT or the schedule, and a column of a tensor-core product
depends on its own row alone: one row, one set of bits. That takes one tensor-core instruction everywhere, mma.m16n8k16:
with one or two warps Triton chooses no other (tests/kernels/test_triton_compile.py reads it off).
The layout is triton_layout.py's, made so that words go from memory to the tensor core without crossing threads.
NOTE: MASK is an argument on purpose: with two constants the and-or of ``_codes`` takes two instructions instead of one.
NOTE: INTERPRETED upcasts what Triton's interpreter cannot do in bf16 (it has no such numbers, only their bits), to float64
because numpy's float32 products depend on the tile.
"""

import triton
import triton.language as tl


@triton.jit
def gate_up_kernel(
    x, inner,  # [R, H] bf16; [N, F] bf16, the routes in the order of their places
    experts,  # [S] int64, the address of each slot's block
    slots, starts, counts, order, rows,  # blocks: slot, first place, places; place → route; route → row
    MASK,
    HIDDEN: tl.constexpr, WIDTH: tl.constexpr,
    ROUTE_MAJOR: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_OUT: tl.constexpr, WARPS: tl.constexpr,
    STAGES: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """inner = silu(W1 x) ⊙ (W3 x), rounded once."""
    slot, places, valid = _block(slots, starts, counts, ROUTE_MAJOR, BLOCK_R)
    if slot < 0:
        return
    routes = places if ROUTE_MAJOR else tl.load(order + places, mask=valid, other=0)
    row_ids = tl.load(rows + routes, mask=valid, other=0)
    columns = x + row_ids.to(tl.int64) * HIDDEN
    tiles_in: tl.constexpr = (HIDDEN + 127) // 128
    tiles: tl.constexpr = (WIDTH + 15) // 16 * tiles_in
    tiles_down: tl.constexpr = (HIDDEN + 15) // 16 * ((WIDTH + 127) // 128)
    codes = _start(experts, slot, 0)
    scales = _start(experts, slot, (2 * tiles + tiles_down) * 256).to(tl.pointer_type(tl.int64), bitcast=True)
    out_ids = tl.program_id(0) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    code_offsets, scale_offsets = _offsets(out_ids, WIDTH, tiles_in, WARPS)
    gate = tl.zeros([BLOCK_OUT, BLOCK_R], tl.float32)
    up = tl.zeros([BLOCK_OUT, BLOCK_R], tl.float32)
    for tile in tl.range(0, tiles_in, num_stages=STAGES):
        gate_words = tl.load(codes + code_offsets + tile * 256)
        up_words = tl.load(codes + tiles * 256 + code_offsets + tile * 256)
        gate_scales = tl.load(scales + scale_offsets + tile * 16)
        up_scales = tl.load(scales + tiles * 16 + scale_offsets + tile * 16)
        x0, x1, x2, x3 = _inputs(columns, valid, tile, HIDDEN, INTERPRETED)
        gate = _step(gate, gate_words, gate_scales, x0, x1, x2, x3, MASK, BLOCK_OUT, WARPS, INTERPRETED)
        up = _step(up, up_words, up_scales, x0, x1, x2, x3, MASK, BLOCK_OUT, WARPS, INTERPRETED)
    result = tl.div_rn(gate, 1.0 + tl.exp(-gate)) * up  # e^-gate is inf below -88: the quotient is -0, never NaN
    targets = inner + places[None, :].to(tl.int64) * WIDTH + out_ids[:, None]
    tl.store(targets, result.to(inner.dtype.element_ty), mask=valid[None, :] & (out_ids < WIDTH)[:, None])


@triton.jit
def down_kernel(
    inner, y,  # [N, F] bf16, by place; [N, H] bf16, by route
    experts,  # [S] int64
    slots, starts, counts, order,
    MASK,
    HIDDEN: tl.constexpr, WIDTH: tl.constexpr,
    ROUTE_MAJOR: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_OUT: tl.constexpr, WARPS: tl.constexpr,
    STAGES: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """y = W2 inner, back in the order of the routes; NaN for a route whose expert is not held: nobody may use it."""
    slot, places, valid = _block(slots, starts, counts, ROUTE_MAJOR, BLOCK_R)
    routes = places if ROUTE_MAJOR else tl.load(order + places, mask=valid, other=0)
    out_ids = tl.program_id(0) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    targets = y + routes[None, :].to(tl.int64) * HIDDEN + out_ids[:, None]
    wanted = valid[None, :] & (out_ids < HIDDEN)[:, None]
    if slot < 0:
        tl.store(targets, float("nan"), mask=wanted)
        return
    tiles_in: tl.constexpr = (WIDTH + 127) // 128
    tiles: tl.constexpr = (HIDDEN + 15) // 16 * tiles_in
    tiles_up: tl.constexpr = (WIDTH + 15) // 16 * ((HIDDEN + 127) // 128)
    codes = _start(experts, slot, 2 * tiles_up * 256)
    scales = _start(experts, slot, (2 * tiles_up + tiles) * 256 + 2 * tiles_up * 32)
    scales = scales.to(tl.pointer_type(tl.int64), bitcast=True)
    code_offsets, scale_offsets = _offsets(out_ids, HIDDEN, tiles_in, WARPS)
    columns = inner + places.to(tl.int64) * WIDTH
    total = tl.zeros([BLOCK_OUT, BLOCK_R], tl.float32)
    for tile in tl.range(0, tiles_in, num_stages=STAGES):
        words = tl.load(codes + code_offsets + tile * 256)
        factors = tl.load(scales + scale_offsets + tile * 16)
        x0, x1, x2, x3 = _inputs(columns, valid, tile, WIDTH, INTERPRETED)
        total = _step(total, words, factors, x0, x1, x2, x3, MASK, BLOCK_OUT, WARPS, INTERPRETED)
    tl.store(targets, total.to(y.dtype.element_ty), mask=wanted)


@triton.jit
def _block(slots, starts, counts, ROUTE_MAJOR: tl.constexpr, BLOCK_R: tl.constexpr):
    """The slot of this program's expert (-1: none), its places [BLOCK_R], and which of these are real."""
    block = tl.program_id(1)
    slot = tl.load(slots + block)
    column = tl.arange(0, BLOCK_R)
    if ROUTE_MAJOR:
        places = block + column * 0
        valid = column < 1
    else:
        places = tl.load(starts + block) + column
        valid = column < tl.load(counts + block)
    return slot, places, valid


@triton.jit
def _start(experts, slot, num_words):
    """A pointer to a part of the slot's block. The hint sits on the cast: on a sum with 0 it would vanish with the sum."""
    block = tl.multiple_of(tl.load(experts + slot).to(tl.pointer_type(tl.int32)), 16)
    return block + num_words


@triton.jit
def _offsets(out_ids, NUM_OUT: tl.constexpr, TILES_IN: tl.constexpr, WARPS: tl.constexpr):
    """Where the outputs' words [out, 16] and four scales [out] of the first tile lie; past the end, some other output's.

    Two warps load rows 0..7 and 8..15 but multiply rows 0..15 and 16..31. So words are loaded with two bits of their row
    exchanged, which ``_step`` takes back in name: no word has to cross to the other warp.
    """
    tiles_out: tl.constexpr = (NUM_OUT + 15) // 16
    loaded = out_ids
    if WARPS == 2:
        loaded = out_ids // 32 * 32 + out_ids % 16 // 8 * 16 + out_ids % 32 // 16 * 8 + out_ids % 8
    words = loaded // 16 % tiles_out * TILES_IN * 256 + loaded % 16 * 16
    return words[:, None] + tl.arange(0, 16)[None, :], out_ids // 16 % tiles_out * TILES_IN * 16 + out_ids % 16


@triton.jit
def _inputs(columns, valid, tile, NUM_IN: tl.constexpr, INTERPRETED: tl.constexpr):
    """The 128 inputs of a tile as four [32, BLOCK_R]; 0 where there is no row or no input."""
    return (
        _group(columns, valid, tile * 128, NUM_IN, INTERPRETED),
        _group(columns, valid, tile * 128 + 32, NUM_IN, INTERPRETED),
        _group(columns, valid, tile * 128 + 64, NUM_IN, INTERPRETED),
        _group(columns, valid, tile * 128 + 96, NUM_IN, INTERPRETED),
    )


@triton.jit
def _group(columns, valid, first, NUM_IN: tl.constexpr, INTERPRETED: tl.constexpr):
    inputs = first + tl.arange(0, 32)
    mask = valid[None, :]
    if NUM_IN % 128 != 0:
        mask = mask & (inputs < NUM_IN)[:, None]
    values = tl.load(columns[None, :] + inputs[:, None], mask=mask, other=0.0)
    return values.to(tl.float32).to(tl.float64) if INTERPRETED else values


@triton.jit
def _step(
    total, words, scales, x0, x1, x2, x3, MASK,
    BLOCK_OUT: tl.constexpr, WARPS: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Four groups of 32 inputs, one after another. words [out, 16], scales [out] int64: four bf16 each."""
    if WARPS == 2:
        words = words.reshape(BLOCK_OUT // 32, 2, 2, 8, 16).permute(0, 2, 1, 3, 4).reshape(BLOCK_OUT, 16)
    even, odd = tl.split(words.reshape(BLOCK_OUT, 4, 2, 2))
    words0, words2 = tl.split(even)
    words1, words3 = tl.split(odd)
    scale0 = (scales.to(tl.int32) << 16).to(tl.float32, bitcast=True)[:, None]
    scale1 = ((scales >> 16).to(tl.int32) << 16).to(tl.float32, bitcast=True)[:, None]
    scale2 = ((scales >> 32).to(tl.int32) << 16).to(tl.float32, bitcast=True)[:, None]
    scale3 = ((scales >> 48).to(tl.int32) << 16).to(tl.float32, bitcast=True)[:, None]
    total = tl.fma(scale0, _product(words0, x0, MASK, BLOCK_OUT, INTERPRETED), total)
    total = tl.fma(scale1, _product(words1, x1, MASK, BLOCK_OUT, INTERPRETED), total)
    total = tl.fma(scale2, _product(words2, x2, MASK, BLOCK_OUT, INTERPRETED), total)
    return tl.fma(scale3, _product(words3, x3, MASK, BLOCK_OUT, INTERPRETED), total)


@triton.jit
def _product(words, x, MASK, BLOCK_OUT: tl.constexpr, INTERPRETED: tl.constexpr):
    return tl.dot(_codes(words, MASK, BLOCK_OUT, INTERPRETED), x).to(tl.float32)


@triton.jit
def _codes(words, MASK, BLOCK_OUT: tl.constexpr, INTERPRETED: tl.constexpr):
    """Words [out, 4 lanes] of one group → codes - 8 [out, 32] bf16. Input 16·half + 4·lane + 2·pair + parity is in
    bits 8·half + 4·pair + 16·parity. 128 + code is exact in bf16, and so is the difference."""
    pairs = tl.join(tl.join(words, words >> 8), tl.join(words >> 4, words >> 12))  # [out, lane, half, pair]
    bits = (pairs & MASK) | 0x43004300
    low = bits.to(tl.int16).to(tl.bfloat16, bitcast=True)
    high = (bits >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
    if INTERPRETED:
        low, high = low.to(tl.float32).to(tl.float64), high.to(tl.float32).to(tl.float64)
    codes = tl.join(low - 136.0, high - 136.0)  # [out, lane, half, pair, parity]
    return codes.permute(0, 2, 1, 3, 4).reshape(BLOCK_OUT, 32)
