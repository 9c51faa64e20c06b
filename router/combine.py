"""The exact combine: weight times expert output, summed in the gate's rank order in fp32.

Knows nothing of where the rows came from. The order of summation is fixed by the gate alone, so any number of shards,
any arrival order and any batch give the same bits.
"""

import torch

# Rows a tile: small enough that a tile of every rank stays in cache, large enough that calls do not count.
_TILE_ROWS = 32


def combine(rows: torch.Tensor, topk_weights: torch.Tensor) -> torch.Tensor:
    """``rows`` [T, K, H] in any dtype, ``topk_weights`` [T, K] fp32, to [T, H] fp32.

    Multiplication and addition are separate operations: a fused one would round differently in vector tails.
    """
    T, K, H = rows.shape
    out = torch.empty(T, H, dtype=torch.float32)
    for start in range(0, T, _TILE_ROWS):
        tile = slice(start, start + _TILE_ROWS)
        weights = topk_weights[tile]
        total = out[tile]
        torch.mul(rows[tile, 0].float(), weights[:, 0:1], out=total)
        for k in range(1, K):
            total += rows[tile, k].float() * weights[:, k : k + 1]
    return out
