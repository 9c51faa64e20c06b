"""The exact combine: weight times expert output, summed in the gate's rank order in fp32.

Knows nothing of where the rows came from. The order of summation is fixed by the gate alone, so any number of shards,
any arrival order and any batch give the same bits; the compiled kernel and torch give the same ones.
"""

import functools
import struct
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from ..kernels.native import Native, load
from ..proto.rows import Rows

Piece = tuple[npt.NDArray[np.int64], Rows]  # routes [n], each t·K + k, and their rows [n, H]
_FEW_ROUTES = 64  # so few numbers are written down sooner one by one than as arrays
# Products a tile: few enough to stay in cache, and with short rows enough that calls do not count.
_TILE_VALUES = 1 << 16


def combine_pieces(pieces: Sequence[Piece], topk_weights: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """Pieces that together have every route, the last one that has it counting, ``topk_weights`` [T, K] fp32, to [T, H] fp32.

    And whether all of that is finite.
    """
    hidden, dtype = pieces[0][1].width, pieces[0][1].dtype
    native = load()
    if isinstance(native, Native):
        return native.combine(_addresses(pieces, topk_weights.numel()), topk_weights, hidden, dtype)
    gathered = torch.empty(topk_weights.numel(), hidden, dtype=dtype)
    for routes, rows in pieces:
        gathered.index_copy_(0, torch.from_numpy(routes), rows.tensor)
    total = combine(gathered.view(*topk_weights.shape, hidden), topk_weights)
    return total, bool(torch.isfinite(total).all())


def _addresses(pieces: Sequence[Piece], num_routes: int) -> bytes | torch.Tensor:
    """Where each route's row lies, int64 [N]."""
    placed = [(routes, rows.address, rows.row_bytes) for routes, rows in pieces]
    if num_routes <= _FEW_ROUTES:
        places = [0] * num_routes
        for routes, begin, stride in placed:
            for number, route in enumerate(routes.tolist()):
                places[route] = begin + number * stride
        return struct.pack(f"={num_routes}q", *places)
    addresses = np.empty(num_routes, dtype=np.int64)
    for routes, begin, stride in placed:
        addresses.put(routes, np.arange(begin, begin + stride * routes.shape[0], stride))
    return torch.from_numpy(addresses)


def combine(rows: torch.Tensor, topk_weights: torch.Tensor) -> torch.Tensor:
    """``rows`` [T, K, H] in any dtype, ``topk_weights`` [T, K] fp32, to [T, H] fp32, by torch.

    Multiplication and addition are separate operations: a fused one would round differently in vector tails.
    """
    T, K, H = rows.shape
    step = max(1, _TILE_VALUES // (K * H))
    if step >= T:
        return functools.reduce(torch.add, (rows.float() * topk_weights[:, :, None]).unbind(1))
    tiles = [slice(start, start + step) for start in range(0, T, step)]
    return torch.cat([combine(rows[tile], topk_weights[tile]) for tile in tiles])
