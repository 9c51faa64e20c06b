"""What each shard is asked of a dispatch: its routes in the order of its experts, and the rows that they need, each once.

Knows nothing of frames, nor of who was chosen and why.
"""

import itertools
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ..kernels.native import Native, load
from ..proto.asked import Indices

Routes = npt.NDArray[np.int64]


class Share(NamedTuple):
    """One shard's: ``experts`` and ``places`` are those of the ``routes``, a place being which of the ``rows`` a route is for."""

    owner: int
    routes: Routes  # [n] ascending by expert
    experts: Indices  # [n]
    places: Indices  # [n]
    rows: Routes  # [r] ascending
    num_experts: int

    def cut(self, most_rows: int) -> "list[Share]":
        """Several, of at most so many rows each."""
        if self.rows.shape[0] <= most_rows:
            return [self]
        pieces = []
        for first in range(0, self.rows.shape[0], most_rows):
            inside = (self.places >= first) & (self.places < first + most_rows)
            experts = self.experts[inside]
            rows = self.rows[first : first + most_rows]
            places = self.places[inside] - np.int32(first)
            pieces.append(Share(self.owner, self.routes[inside], experts, places, rows, len(np.unique(experts))))
        return pieces


def share_out(
    owners: torch.Tensor,  # int64 [E], each expert's: -1 for nobody, or a shard below ``num_shards``
    num_shards: int,
    experts: torch.Tensor,  # int64 [N]
    routes: Routes | None,  # [N], ascending; None for 0 to N - 1
    top_k: int,
    num_rows: int,
) -> tuple[list[Share], Routes]:
    """A share for each shard that is asked, and the routes that nobody can answer; route n is of row n / ``top_k``.

    The compiled way and numpy's give the same.
    """
    native = load()
    if not isinstance(native, Native):
        return _share_out(owners.numpy(), num_shards, experts.numpy().reshape(-1), routes, top_k)
    given = None if routes is None else torch.from_numpy(routes)
    found: Routes = native.share_out(owners, num_shards, experts, given, top_k, num_rows).numpy()
    num_routes = experts.numel()
    asked = found[2 * num_routes : 3 * num_routes].view(np.int32)
    numbers: list[int] = found[3 * num_routes :].tolist()
    route_ends, row_ends, activated = numbers, numbers[num_shards + 1 :], numbers[2 * num_shards + 2 :]
    shares = []
    for owner in range(num_shards):
        first, last = route_ends[owner], route_ends[owner + 1]
        if first < last:
            rows = found[num_routes + row_ends[owner] : num_routes + row_ends[owner + 1]]
            places = asked[num_routes + first : num_routes + last]
            shares.append(Share(owner, found[first:last], asked[first:last], places, rows, activated[owner]))
    return shares, found[: route_ends[0]]


def _share_out(
    owners: Routes, num_shards: int, experts: Routes, routes: Routes | None, top_k: int
) -> tuple[list[Share], Routes]:
    routes = np.arange(len(experts)) if routes is None else routes
    order = np.lexsort((experts, owners[experts]))
    routes, experts = routes[order], experts[order]
    ends = np.searchsorted(owners[experts], np.arange(num_shards + 1)).tolist()
    shares = []
    for owner, (first, last) in enumerate(itertools.pairwise(ends)):
        if first < last:
            mine, asked = routes[first:last], experts[first:last].astype(np.int32)
            rows, places = np.unique(mine // top_k, return_inverse=True)
            shares.append(Share(owner, mine, asked, places.astype(np.int32), rows, len(np.unique(asked))))
    return shares, routes[: ends[0]]
