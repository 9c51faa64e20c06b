"""What a dispatch requests of each shard: its routes in the order of its experts, and the rows that they need, each once.

Knows nothing of frames, nor of why a shard was chosen.
"""

import itertools
from array import array
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ...kernels.native import Native, load
from ...proto.dispatch_header import Indices

Routes = npt.NDArray[np.int64]


class ShardRequest(NamedTuple):
    """One shard's: ``experts`` and ``places`` are those of the ``routes``, a place being which of the ``rows`` a route is for."""

    owner: int
    routes: Routes  # [n] ascending by expert
    experts: Indices  # [n]
    places: Indices  # [n]
    rows: Routes  # [r] ascending
    num_experts: int

    def cut(self, most_rows: int) -> "list[ShardRequest]":
        """Several, of at most so many rows each."""
        if self.rows.shape[0] <= most_rows:
            return [self]
        places, asked = np.asarray(self.places), np.asarray(self.experts)
        pieces = []
        for first in range(0, self.rows.shape[0], most_rows):
            inside = (places >= first) & (places < first + most_rows)
            experts, rows = asked[inside], self.rows[first : first + most_rows]
            mine = places[inside] - np.int32(first)
            pieces.append(
                ShardRequest(self.owner, self.routes[inside], experts.data, mine.data, rows, len(np.unique(experts)))
            )
        return pieces


def partition_routes(
    owners: torch.Tensor,  # int64 [E], each expert's: -1 for nobody, or a shard below ``num_shards``
    num_shards: int,
    experts: torch.Tensor,  # int64 [N]
    routes: Routes | None,  # [N], ascending; None for 0 to N - 1
    top_k: int,
    num_rows: int,
) -> tuple[list[ShardRequest], Routes]:
    """A share for each shard that is asked, and the routes that nobody can answer; route n is of row n / ``top_k``.

    The compiled way and numpy's give the same.
    """
    native = load()
    if not isinstance(native, Native):
        return _partition_routes(owners.numpy(), num_shards, experts.numpy().reshape(-1), routes, top_k)
    given = None
    if routes is not None:
        assert routes.dtype == np.int64, f"routes are {routes.dtype}"
        assert routes.flags.c_contiguous, f"routes have strides {routes.strides}"
        assert routes.shape == (experts.numel(),), f"{routes.shape[0]} routes, {experts.numel()} experts"
        given = routes.ctypes.data
    told = native.partition_routes(owners, num_shards, experts, given, top_k, num_rows)
    return requests_of(told, experts.numel(), num_shards)


def requests_of(told: "array[int]", num_routes: int, num_shards: int) -> tuple[list[ShardRequest], Routes]:
    """The same of what the compiled call has told."""
    found = np.frombuffer(told, np.int64)
    asked = memoryview(told)[2 * num_routes : 3 * num_routes].cast("B").cast("i")
    ends, rows_at = 3 * num_routes, 3 * num_routes + num_shards + 1
    shares = []
    for owner in range(num_shards):
        first, last = told[ends + owner], told[ends + owner + 1]
        if first < last:
            rows = found[num_routes + told[rows_at + owner] : num_routes + told[rows_at + owner + 1]]
            places = asked[num_routes + first : num_routes + last]
            activated = told[rows_at + num_shards + 1 + owner]
            shares.append(ShardRequest(owner, found[first:last], asked[first:last], places, rows, activated))
    return shares, found[: told[ends]]


def _partition_routes(
    owners: Routes, num_shards: int, experts: Routes, routes: Routes | None, top_k: int
) -> tuple[list[ShardRequest], Routes]:
    routes = np.arange(len(experts)) if routes is None else routes
    order = np.lexsort((experts, owners[experts]))
    routes, experts = routes[order], experts[order]
    ends = np.searchsorted(owners[experts], np.arange(num_shards + 1)).tolist()
    shares = []
    for owner, (first, last) in enumerate(itertools.pairwise(ends)):
        if first < last:
            mine, asked = routes[first:last], experts[first:last].astype(np.int32)
            rows, places = np.unique(mine // top_k, return_inverse=True)
            num_experts = len(np.unique(asked))
            shares.append(ShardRequest(owner, mine, asked.data, places.astype(np.int32).data, rows, num_experts))
    return shares, routes[: ends[0]]
