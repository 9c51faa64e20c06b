"""The fan-out of one layer: one compiled call picks the shards, builds their frames and hands them to the kernel.

Knows nothing of answers. The call leaves to the lanes what it cannot send: frames for a lane of another kind or a full one, and
layers of many routes, where a call more or less does not count.
"""

import ctypes
from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from ...kernels.native_lanes import Calls, FanoutArgs, WorkerEnd
from ...proto.frame_prefix import DTYPE_CODES
from .routing_table import RoutingTable
from .shard_requests import Routes, ShardRequest, requests_of

_MOST_ROUTES = 256
_MOST_US = 0xFFFFFFFF


class SentRequest(NamedTuple):
    """One shard's frame: ``routes_at`` is the address of the routes, and ``num_unsent`` bytes of the frame wait."""

    owner: int
    frame_id: int
    routes: Routes  # [n] ascending by expert
    routes_at: int
    num_rows: int
    num_experts: int
    num_unsent: int


class FanoutResult:
    """What a compiled fan-out wrote down (``Native.partition_routes`` and ``cpp/lanes.cpp`` say what is where)."""

    def __init__(self, told: "array[int]", num_routes: int, num_shards: int, num_frames: int, frame_id: int) -> None:
        self.num_frames = num_frames
        self._told, self._num_routes, self._num_shards, self._frame_id = told, num_routes, num_shards, frame_id
        self._routes = np.frombuffer(told, np.int64)[:num_routes]
        self._routes_at = told.buffer_info()[0]
        self._ends = 3 * num_routes
        self._order = len(told) - 2 * num_shards
        self._left = self._order + num_shards

    @property
    def unroutable(self) -> Routes:
        """Routes that no shard can answer."""
        return self._routes[: self._told[self._ends]]

    def sent(self) -> Iterator[SentRequest]:
        """What has been sent, in that order."""
        told, ends = self._told, self._ends
        row_ends = ends + self._num_shards + 1
        activated = row_ends + self._num_shards + 1
        for number in range(self.num_frames):
            owner, num_unsent = told[self._order + number], told[self._left + number]
            if num_unsent >= 0:
                first = told[ends + owner]
                yield SentRequest(
                    owner, self._frame_id + number, self._routes[first : told[ends + owner + 1]],
                    self._routes_at + 8 * first, told[row_ends + owner + 1] - told[row_ends + owner],
                    told[activated + owner], num_unsent,
                )  # fmt: skip

    def unsent(self) -> list[ShardRequest]:
        """What is left to the lanes, in the order in which it is to be sent."""
        requests, last = self.requests(), self._order + self.num_frames
        order, left = self._told[self._order : last], self._told[self._left : self._left + self.num_frames]
        return [requests[owner] for owner, num_unsent in zip(order, left, strict=True) if num_unsent < 0]

    def requests(self) -> dict[int, ShardRequest]:
        """All of them, by owner."""
        return {request.owner: request for request in requests_of(self._told, self._num_routes, self._num_shards)[0]}


class LayerFanout:
    """For one plan, whose members' lanes have these ``ends``."""

    def __init__(
        self, calls: Calls, plan: RoutingTable, ends: Sequence[WorkerEnd], fingerprint: bytes, timeout_s: float
    ) -> None:
        self._call, self._plan = calls.ask, plan
        self._holders: dict[int, tuple[int | None, int, int]] = {}  # by layer
        self._ends = (ctypes.POINTER(WorkerEnd) * len(ends))(*map(ctypes.pointer, ends))
        self._ask = FanoutArgs(num_shards=len(ends), num_experts=plan.num_experts, ends=self._ends)
        self._ask.fingerprint = int.from_bytes(fingerprint, "little")
        self._ask.epoch[:] = [plan.epoch.incarnation, plan.epoch.counter]
        self._ask.timeout_us = min(int(timeout_s * 1e6), _MOST_US)
        self._ask_at = ctypes.addressof(self._ask)
        self._num_shards = len(ends)
        self._shape: tuple[torch.Size, torch.Size, torch.dtype] | None = None  # of the question before
        self._num_routes = 0
        self._told = array("q")  # for the next one

    def __call__(
        self, layer: int, x: torch.Tensor, topk_ids: torch.Tensor, priority: int, first_frame_id: int
    ) -> FanoutResult | None:
        """Rows [T, H] for the experts [T, K], int64. The frames' ids are those from ``first_frame_id`` on. None where this is not for a
        compiled call. Raises IndexError for an expert that there is not."""
        shape = (x.shape, topk_ids.shape, x.dtype)
        if shape != self._shape and not self._prepare(*shape):
            return None
        assert x.is_contiguous(), f"x has strides {x.stride()}"
        assert topk_ids.is_contiguous(), f"ids have strides {topk_ids.stride()}"
        assert topk_ids.dtype is torch.int64, f"ids are {topk_ids.dtype}"
        ask, told = self._ask, self._told
        ask.replicas, ask.stride, ask.owners = self._holders.get(layer) or self._holders_of(layer)
        ask.layer, ask.priority, ask.frame_id = layer, priority, first_frame_id
        ask.x, ask.experts = x.data_ptr(), topk_ids.data_ptr()
        num_frames: int = self._call(self._ask_at)
        if num_frames < 0:
            raise IndexError(f"an expert of {topk_ids.tolist()} is not below {self._plan.num_experts}")
        self._renew()
        return FanoutResult(told, self._num_routes, self._num_shards, num_frames, first_frame_id)

    def _prepare(self, of_rows: torch.Size, of_ids: torch.Size, dtype: torch.dtype) -> bool:
        """For a question of this shape, if it is small enough."""
        (num_rows, hidden), (_, top_k) = of_rows, of_ids
        num_routes = num_rows * top_k
        if not 0 < num_routes <= _MOST_ROUTES or not self._num_shards:
            return False
        ask = self._ask
        ask.num_rows, ask.top_k, ask.hidden = num_rows, top_k, hidden
        ask.dtype, ask.row_bytes = DTYPE_CODES[dtype], hidden * dtype.itemsize
        self._shape, self._num_routes = (of_rows, of_ids, dtype), num_routes
        self._renew()
        return True

    def _renew(self) -> None:
        """What is told next time is written to other memory: that of before is the answer's."""
        self._told = array("q", bytes(8 * (3 * self._num_routes + 5 * self._num_shards + 2)))
        self._ask.told = self._told.buffer_info()[0]

    def _holders_of(self, layer: int) -> tuple[int | None, int, int]:
        self._holders[layer] = found = self._plan.holders(layer)
        return found
