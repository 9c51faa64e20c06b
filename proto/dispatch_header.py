"""The header that all kinds of dispatch frames share: layer, epoch, time left, rows and routes.

Knows nothing of where the rows are. 44 bytes and 4 zero bytes follow a frame's prefix; route_rows and route_experts, int32 [N]
each, end the frame.
"""

import struct
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch

from .frame_prefix import DTYPE_CODES, PREFIX, Buffer, at_least, bad, dtype_of, expect

DISPATCH_HEADER = struct.Struct("<8sQQHBBIIII4x")
_FEW_ROUTES = 64  # as numbers they are looked through sooner than as an array
Indices: TypeAlias = memoryview  # of int32
_Fields: TypeAlias = tuple[bytes, tuple[int, int], int, int, int]  # of ``DispatchHeader``, after the frame id


@dataclass(slots=True)
class DispatchHeader:
    """What every dispatch says, wherever its rows are."""

    frame_id: int
    fingerprint: bytes
    epoch: tuple[int, int]
    layer: int
    priority: int
    timeout_us: int


def pack_dispatch_header(
    asked: DispatchHeader, dtype: torch.dtype, num_rows: int, num_routes: int, hidden: int
) -> bytes:
    timeout_us = min(max(asked.timeout_us, 0), 0xFFFFFFFF)
    return DISPATCH_HEADER.pack(
        asked.fingerprint, *asked.epoch, asked.layer, DTYPE_CODES[dtype], asked.priority, timeout_us,
        num_rows, num_routes, hidden,
    )  # fmt: skip


def unpack_dispatch_header(frame: Buffer) -> tuple[_Fields, torch.dtype, int, int, int]:
    """What was asked, the dtype of its rows, how many they are, how many routes there are, and how wide they are."""
    at_least(frame, PREFIX.size + DISPATCH_HEADER.size)
    fingerprint, incarnation, counter, layer, dtype, priority, timeout_us, num_rows, num_routes, hidden = (
        DISPATCH_HEADER.unpack_from(frame, PREFIX.size)
    )
    if not num_rows or not num_routes or not hidden:
        raise bad(f"{num_rows} rows of {hidden} with {num_routes} routes; each must be at least 1")
    asked = fingerprint, (incarnation, counter), layer, priority, timeout_us
    return asked, dtype_of(dtype), num_rows, num_routes, hidden


def pack_routes(route_rows: Indices, route_experts: Indices) -> tuple[Buffer, Buffer]:
    return route_rows.cast("B"), route_experts.cast("B")


def unpack_routes(frame: Buffer, start: int, num_routes: int, num_rows: int) -> tuple[Indices, Indices]:
    """Rows and experts of the routes, which end the frame."""
    expect(frame, start + 8 * num_routes)
    routes, middle = memoryview(frame), start + 4 * num_routes
    route_rows, route_experts = routes[start:middle].cast("i"), routes[middle:].cast("i")
    if num_routes <= _FEW_ROUTES:
        rows = route_rows.tolist()
        is_wrong = min(rows) < 0 or max(rows) >= num_rows
    else:
        is_wrong = np.asarray(route_rows).view(np.uint32).max() >= num_rows  # as unsigned, what is negative is large
    if is_wrong:
        wrong = next(row for row in route_rows.tolist() if not 0 <= row < num_rows)
        raise bad(f"a route names row {wrong} of {num_rows}")
    return route_rows, route_experts
