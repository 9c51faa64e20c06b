"""A layer's question to all shards in one compiled call: who is asked what, the frames, and their way to the kernel.

Knows nothing of answers. What is for a shard that it cannot reach so, over a lane of another kind or one that is full, is left to the
lanes; so are large questions, where a call more or less does not count.
"""

import ctypes
from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from ..kernels.native_lanes import Ask, Calls, WorkerEnd
from ..proto.layout import DTYPE_CODES
from .plan import Plan
from .shares import Routes, Share, shares_of

_MOST_ROUTES = 256
_MOST_US = 0xFFFFFFFF


class Asked(NamedTuple):
    """One shard's: the bytes of its frame that the kernel did not take, -1 for a frame that was not sent; ``routes_at`` is the address
    of the share's routes."""

    share: Share
    frame_id: int
    num_unsent: int
    routes_at: int


class Asking:
    """For one plan, whose members' lanes have these ``ends``."""

    def __init__(self, calls: Calls, plan: Plan, ends: Sequence[WorkerEnd], fingerprint: bytes) -> None:
        self._call, self._plan = calls.ask, plan
        self._ends = (ctypes.POINTER(WorkerEnd) * len(ends))(*map(ctypes.pointer, ends))
        self._ask = Ask(num_shards=len(ends), num_experts=plan.num_experts, ends=self._ends)
        self._ask.fingerprint = int.from_bytes(fingerprint, "little")
        self._ask.epoch[:] = [plan.epoch.incarnation, plan.epoch.counter]
        self._ask_at = ctypes.addressof(self._ask)
        self._num_shards = len(ends)

    def __call__(
        self, layer: int, x: torch.Tensor, topk_ids: torch.Tensor, priority: int, deadline_s: float, first_frame_id: int
    ) -> tuple[list[Asked], Routes] | None:
        """Rows [T, H] to the experts [T, K], int64: each shard's, those that were sent first, and the routes that nobody can answer. The
        frames' ids are those from ``first_frame_id`` on. None where this is not for a compiled call. Raises IndexError for an expert
        that there is not."""
        (num_rows, top_k), num_shards = topk_ids.shape, self._num_shards
        num_routes, hidden = num_rows * top_k, x.shape[1]
        if not 0 < num_routes <= _MOST_ROUTES or not num_shards:
            return None
        assert x.is_contiguous(), f"x has strides {x.stride()}"
        assert topk_ids.is_contiguous(), f"ids have strides {topk_ids.stride()}"
        ask, dtype = self._ask, x.dtype
        told = array("q", bytes(8 * (3 * num_routes + 5 * num_shards + 2)))
        told_at = told.buffer_info()[0]
        ask.replicas, ask.stride, ask.owners = self._plan.holders(layer)
        ask.layer, ask.priority, ask.deadline_us = layer, priority, min(int(deadline_s * 1e6), _MOST_US)
        ask.x, ask.num_rows, ask.hidden, ask.row_bytes = x.data_ptr(), num_rows, hidden, hidden * dtype.itemsize
        ask.dtype, ask.top_k, ask.experts = DTYPE_CODES[dtype], top_k, topk_ids.data_ptr()
        ask.frame_id, ask.told = first_frame_id, told_at
        num_asked: int = self._call(self._ask_at)
        if num_asked < 0:
            raise IndexError(f"an expert of {topk_ids.tolist()} is not below {self._plan.num_experts}")
        shares, orphans = shares_of(told, num_routes, num_shards)
        return sorted(self._asked(told, told_at, num_asked, shares, first_frame_id), key=_is_unsent), orphans

    def _asked(
        self, told: "array[int]", told_at: int, num_asked: int, shares: list[Share], frame_id: int
    ) -> Iterator[Asked]:
        by_owner = {share.owner: share for share in shares}
        order = len(told) - 2 * self._num_shards
        ends = order - 3 * self._num_shards - 2
        for number in range(num_asked):
            owner, num_unsent = told[order + number], told[order + self._num_shards + number]
            yield Asked(by_owner[owner], frame_id + number, num_unsent, told_at + 8 * told[ends + owner])


def _is_unsent(asked: Asked) -> bool:
    return asked.num_unsent < 0
