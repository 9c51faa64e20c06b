"""The exact combine: weight times expert output, summed in the gate's rank order in fp32.

Knows nothing of where the rows came from. The order of summation is fixed by the gate alone, so any number of shards,
any arrival order and any batch give the same bits; the compiled kernel and torch give the same ones.
"""

import functools

import numpy as np
import numpy.typing as npt
import torch

from ...kernels.native import CombineCall, Native, load, tensor_at
from ...proto.rows import Rows

Piece = tuple[npt.NDArray[np.int64], Rows]  # routes [n], each t·K + k, and their rows [n, H]
_FEW_ROUTES = 64  # so few numbers are written down sooner one by one than as arrays
# Products a tile: few enough to stay in cache, and with short rows enough that calls do not count.
_TILE_VALUES = 1 << 16


class Answers:
    """The rows of a dispatch's routes as they come; of several for one route, the last one counts.

    Whoever waits for the last one waits for what is done after it, so each row's address is written down when it comes.
    """

    def __init__(self, topk_weights: torch.Tensor, hidden: int, dtype: torch.dtype) -> None:
        """``topk_weights`` [T, K] fp32; rows are [hidden] in ``dtype``."""
        self._pieces: list[Piece] = []
        self._noted: list[npt.NDArray[np.int64]] = []  # routes whose rows' addresses others wrote down
        self._weights, self._hidden, self._dtype = topk_weights, hidden, dtype
        self._call: CombineCall | None = None

    def prepare(self) -> None:
        """Takes the memory for the sum, if that was not done yet: while the first answer is awaited nobody else waits."""
        if self._call is None and isinstance(native := load(), Native):
            self._call = CombineCall(native, self._weights, self._hidden, self._dtype)

    @property
    def places(self) -> int:
        """Where the address of each route's row is to be written down, int64 [T·K]; there is a compiled call."""
        self.prepare()
        assert self._call is not None, "the library was built, as somebody writes there"
        return self._call.places_at

    @property
    def pieces(self) -> list[Piece]:
        """In the order in which they came."""
        while self._noted:
            assert self._call is not None, "somebody has written there"
            routes = self._noted.pop()
            rows = [tensor_at(self._call.places[route], (self._hidden,), self._dtype) for route in routes.tolist()]
            self._pieces.insert(0, (routes, Rows.of(torch.stack(rows))))
        return self._pieces

    def note(self, routes: npt.NDArray[np.int64]) -> None:
        """Somebody has written down where their rows are; before any other is added a second time."""
        self._noted.append(routes)

    def add(self, routes: npt.NDArray[np.int64], rows: Rows) -> None:
        self.prepare()
        self._pieces.append((routes, rows))
        if self._call is None:
            return
        places, begin, stride = self._call.places, rows.address, rows.row_bytes
        if len(routes) <= _FEW_ROUTES:
            for route in routes.tolist():
                places[route] = begin
                begin += stride
        else:
            found = np.arange(begin, begin + stride * len(routes), stride)
            np.frombuffer(places, np.int64).put(routes, found)

    def forget(self) -> None:
        """Their memory is somebody else's again."""
        self._pieces.clear()
        self._noted.clear()

    def combined(self) -> tuple[torch.Tensor, bool]:
        """[T, H] fp32 once every route has a row, and whether all of that is finite."""
        if self._call is not None:
            is_finite = self._call()
            return self._call.total, is_finite
        gathered = torch.empty(self._weights.numel(), self._hidden, dtype=self._dtype)
        for routes, rows in self._pieces:
            gathered.index_copy_(0, torch.from_numpy(routes), rows.tensor)
        total = combine(gathered.view(*self._weights.shape, self._hidden), self._weights)
        return total, bool(torch.isfinite(total).all())


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
