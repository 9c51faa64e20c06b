# mypy: disable-error-code="import-not-found, import-untyped, untyped-decorator, no-untyped-def, no-untyped-call"
"""The gate on an NVIDIA GPU: bf16 rows and gate weights to the best experts and their weights, as router/dispatch/gate.py does it.

Knows nothing of shards, or of expert groups (K2 has one). Logits are sums of exact products in float32; a row's bits
depend on the row alone: 1. ``logits_kernel`` sums stretches of SPLIT inputs on tensor cores, the same instruction for any
number of rows; 2. ``top_k_kernel`` adds the stretches in order, one row a program: sigmoid, bias, K times the largest.
Equal biased scores: the expert with the smaller id goes first. Weights are un-biased, summed in rank order, scaled.
"""

import functools

import torch
import triton
import triton.language as tl

SPLIT = 512
BLOCK_E = 32
TOKENS = (8, 32)  # rows a program of the logits
LOGITS_OPTIONS = {"num_warps": 2, "num_stages": 3}
TOP_K_OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


def gate_top_k(
    x: torch.Tensor,  # [T, H] bf16
    weight: torch.Tensor,  # [E, H] bf16
    bias: torch.Tensor,  # [E] fp32, e_score_correction_bias
    top_k: int,
    normalise: bool,
    scaling_factor: float,
) -> tuple[torch.Tensor, torch.Tensor]:  # topk_ids [T, K] int32, topk_weights [T, K] fp32, best first
    T, H = x.shape
    E = weight.shape[0]
    assert x.dtype is weight.dtype is torch.bfloat16, f"x is {x.dtype}, the weight {weight.dtype}, wanted bfloat16"
    assert (weight.shape, bias.shape) == ((E, H), (E,)), f"weight {tuple(weight.shape)}, bias {tuple(bias.shape)}"
    for tensor in (x, weight, bias):
        assert tensor.is_contiguous(), f"strides {tensor.stride()}, wanted rows one after another"
    assert 0 < top_k <= E, f"top_k is {top_k}, there are {E} experts"
    splits = triton.cdiv(H, SPLIT)
    partials = x.new_empty((splits, T, E), dtype=torch.float32)
    topk_ids = x.new_empty((T, top_k), dtype=torch.int32)
    topk_weights = x.new_empty((T, top_k), dtype=torch.float32)
    if T == 0:
        return topk_ids, topk_weights
    few, many = TOKENS
    block_t = few if few >= T else many
    interpreted = not isinstance(logits_kernel, triton.runtime.JITFunction)
    logits_kernel[(triton.cdiv(E, BLOCK_E), triton.cdiv(T, block_t), splits)](
        x, weight, partials, T, H, E, block_t, BLOCK_E, SPLIT, interpreted, **LOGITS_OPTIONS
    )
    sizes = triton.next_power_of_2(E), triton.next_power_of_2(top_k)
    top_k_kernel[(T,)](
        partials, bias, topk_ids, topk_weights, T, E, top_k, normalise, scaling_factor, splits, *sizes, **TOP_K_OPTIONS
    )
    return topk_ids, topk_weights


def gate_top_k_reference(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, top_k: int, normalise: bool, scaling_factor: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same in plain torch, logits in float64."""
    scores = torch.sigmoid((x.double() @ weight.double().t()).float())
    topk_ids = torch.sort(scores + bias, dim=-1, descending=True, stable=True).indices[:, :top_k]
    weights = scores.gather(1, topk_ids)
    if normalise:
        weights = weights / (functools.reduce(torch.add, weights.split(1, dim=1)) + 1e-20)
    return topk_ids.int(), weights * scaling_factor


@triton.jit
def logits_kernel(
    x, weight, partials,  # [T, H], [E, H], [splits, T, E]
    T, HIDDEN: tl.constexpr, NUM_EXPERTS: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr, SPLIT: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    experts = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    tokens = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    first = tl.program_id(2) * SPLIT
    total = tl.zeros([BLOCK_E, BLOCK_T], tl.float32)
    for step in range(0, SPLIT, 64):
        inputs = first + step + tl.arange(0, 64)
        left = weight + experts[:, None] * HIDDEN + inputs[None, :]
        right = x + tokens[None, :].to(tl.int64) * HIDDEN + inputs[:, None]
        gate = tl.load(left, mask=(experts < NUM_EXPERTS)[:, None] & (inputs < HIDDEN)[None, :], other=0.0)
        rows = tl.load(right, mask=(tokens < T)[None, :] & (inputs < HIDDEN)[:, None], other=0.0)
        if INTERPRETED:  # bf16 is bits alone there, and numpy's float32 products depend on the tile
            total += tl.dot(gate.to(tl.float32).to(tl.float64), rows.to(tl.float32).to(tl.float64)).to(tl.float32)
        else:
            total = tl.dot(gate, rows, total)
    targets = partials + (tl.program_id(2) * T + tokens[None, :]).to(tl.int64) * NUM_EXPERTS + experts[:, None]
    tl.store(targets, total, mask=(tokens < T)[None, :] & (experts < NUM_EXPERTS)[:, None])


@triton.jit
def top_k_kernel(
    partials, bias, topk_ids, topk_weights,
    T, NUM_EXPERTS: tl.constexpr, TOP_K: tl.constexpr, NORMALISE: tl.constexpr, SCALING_FACTOR: tl.constexpr,
    SPLITS: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    experts = tl.arange(0, BLOCK_E)
    ranks = tl.arange(0, BLOCK_K)
    known = experts < NUM_EXPERTS
    logits = tl.load(partials + token * NUM_EXPERTS + experts, mask=known, other=0.0)
    for split in range(1, SPLITS):
        logits += tl.load(partials + (split * T + token) * NUM_EXPERTS + experts, mask=known, other=0.0)
    scores = tl.div_rn(1.0, 1.0 + tl.exp(-logits))
    biased = tl.where(known, scores + tl.load(bias + experts, mask=known, other=0.0), float("-inf"))
    ids = tl.zeros([BLOCK_K], tl.int32)
    weights = tl.zeros([BLOCK_K], tl.float32)
    total = 0.0
    for rank in range(TOP_K):
        best = tl.argmax(biased, axis=0, tie_break_left=True)
        score = tl.sum(tl.where(experts == best, scores, 0.0), axis=0)
        total += score
        ids = tl.where(ranks == rank, best, ids)
        weights = tl.where(ranks == rank, score, weights)
        biased = tl.where(experts == best, float("-inf"), biased)
    if NORMALISE:
        weights = tl.div_rn(weights, (total + 1e-20) + tl.zeros([BLOCK_K], tl.float32))
    tl.store(topk_ids + token * TOP_K + ranks, ids, mask=ranks < TOP_K)
    tl.store(topk_weights + token * TOP_K + ranks, weights * SCALING_FACTOR, mask=ranks < TOP_K)
