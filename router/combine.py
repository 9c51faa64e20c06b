"""The exact combine: weight times expert output, summed in the gate's rank order in fp32.

Knows nothing of where the rows came from. The order of summation is fixed by the gate alone, so any number of shards,
any arrival order and any batch give the same bits.
"""

import functools

import torch

# Products a tile: few enough to stay in cache, and with short rows enough that calls do not count.
_TILE_VALUES = 1 << 16


def combine(rows: torch.Tensor, topk_weights: torch.Tensor) -> torch.Tensor:
    """``rows`` [T, K, H] in any dtype, ``topk_weights`` [T, K] fp32, to [T, H] fp32.

    Multiplication and addition are separate operations: a fused one would round differently in vector tails.
    """
    T, K, H = rows.shape
    step = max(1, _TILE_VALUES // (K * H))
    if step >= T:
        return functools.reduce(torch.add, (rows.float() * topk_weights[:, :, None]).unbind(1))
    tiles = [slice(start, start + step) for start in range(0, T, step)]
    return torch.cat([combine(rows[tile], topk_weights[tile]) for tile in tiles])
