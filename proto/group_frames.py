"""The frames of a lane whose large rows travel beside it, through a process group of its two ends.

Knows nothing of groups. These kinds exist since wire version 2. A transfer is announced on the lane, then its rows travel through
the group; ``number`` counts a generation's transfers in one direction from 0 on, so that both ends take them in one order.

* PAIR           generation u32, 4 zero bytes, UTF-8 HOST:PORT of the store at which the worker's end waits
* DISPATCH_PG         as DISPATCH, but instead of the rows generation u32 and number u32
* RESULT_PG  as RESULT, but instead of the rows generation u32 and number u32
* ACK_PG          generation u32, count u32, ended u8, 7 zero bytes: the first ``count`` transfers have come, and if ended
  no others will; what was announced beyond them shall come over the lane
"""

import struct
from dataclasses import dataclass

import torch

from .dispatch_header import (
    DISPATCH_HEADER,
    DispatchHeader,
    Indices,
    pack_dispatch_header,
    pack_routes,
    unpack_dispatch_header,
    unpack_routes,
)
from .frame_prefix import DTYPE_CODES, PAIRS_SINCE, PREFIX, Buffer, Kind, at_least, bad, dtype_of, expect, prefix

MAX_ADDRESS_BYTES = 256
_PAIR = struct.Struct("<I4x")
_TRANSFER = struct.Struct("<II")
_RESULT = struct.Struct("<IIIIB7x")
_TAKEN = struct.Struct("<IIB7x")


@dataclass(frozen=True, slots=True)
class GroupOffer:
    """Where the shard's end of a pair finds the worker's."""

    generation: int
    address: str


@dataclass(slots=True)
class DispatchPg(DispatchHeader):
    """A DISPATCH whose rows [num_rows, hidden] come as transfer ``number`` of a generation."""

    dtype: torch.dtype
    num_rows: int
    hidden: int
    generation: int
    number: int
    route_rows: Indices  # [N]
    route_experts: Indices  # [N]


@dataclass(frozen=True, slots=True)
class ResultPg:
    """A RESULT whose rows [count, hidden] come as transfer ``number`` of a generation."""

    frame_id: int
    first_route: int
    num_routes: int
    dtype: torch.dtype
    count: int
    hidden: int
    generation: int
    number: int


@dataclass(frozen=True, slots=True)
class AckPg:
    generation: int
    count: int
    ended: bool


GroupFrame = GroupOffer | DispatchPg | ResultPg | AckPg
KINDS = frozenset((Kind.GROUP_OFFER, Kind.DISPATCH_PG, Kind.RESULT_PG, Kind.ACK_PG))


def encode_group_offer(pair: GroupOffer, version: int) -> bytes:
    return _begin(version, Kind.GROUP_OFFER, 0) + _PAIR.pack(pair.generation) + pair.address.encode()


def encode_dispatch_pg(frame: DispatchPg, version: int) -> bytes:
    header = pack_dispatch_header(frame, frame.dtype, frame.num_rows, len(frame.route_rows), frame.hidden)
    transfer = _TRANSFER.pack(frame.generation, frame.number)
    begin = _begin(version, Kind.DISPATCH_PG, frame.frame_id)
    return b"".join((begin, header, transfer, *pack_routes(frame.route_rows, frame.route_experts)))


def encode_result_pg(frame: ResultPg, version: int) -> bytes:
    header = _RESULT.pack(frame.first_route, frame.count, frame.num_routes, frame.hidden, DTYPE_CODES[frame.dtype])
    transfer = _TRANSFER.pack(frame.generation, frame.number)
    return _begin(version, Kind.RESULT_PG, frame.frame_id) + header + transfer


def encode_ack_pg(taken: AckPg, version: int) -> bytes:
    return _begin(version, Kind.ACK_PG, 0) + _TAKEN.pack(taken.generation, taken.count, taken.ended)


def decode(frame: Buffer, kind: Kind, frame_id: int, max_frame_bytes: int) -> GroupFrame:
    """One of ``KINDS``, whose prefix has been checked; rows that it announces have at most ``max_frame_bytes``."""
    match kind:
        case Kind.GROUP_OFFER:
            return _decode_pair(frame)
        case Kind.DISPATCH_PG:
            return _decode_dispatch_pg(frame, frame_id, max_frame_bytes)
        case Kind.RESULT_PG:
            return _decode_result_pg(frame, frame_id, max_frame_bytes)
        case _:
            return _decode_taken(frame)


def _decode_pair(frame: Buffer) -> GroupOffer:
    start = PREFIX.size + _PAIR.size
    at_least(frame, start)
    if len(frame) > start + MAX_ADDRESS_BYTES:
        raise bad(f"address of {len(frame) - start} bytes; the limit is {MAX_ADDRESS_BYTES}")
    (generation,) = _PAIR.unpack_from(frame, PREFIX.size)
    address = bytes(frame[start:]).decode(errors="replace")
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdecimal()) or not 0 < int(port) < 1 << 16:
        raise bad(f"{address!r} is not HOST:PORT")
    return GroupOffer(generation, address)


def _decode_dispatch_pg(frame: Buffer, frame_id: int, max_frame_bytes: int) -> DispatchPg:
    asked, dtype, num_rows, num_routes, hidden = unpack_dispatch_header(frame)
    _check_size(num_rows, hidden, dtype, max_frame_bytes)
    start = PREFIX.size + DISPATCH_HEADER.size
    at_least(frame, start + _TRANSFER.size)
    generation, number = _TRANSFER.unpack_from(frame, start)
    routes = unpack_routes(frame, start + _TRANSFER.size, num_routes, num_rows)
    return DispatchPg(frame_id, *asked, dtype, num_rows, hidden, generation, number, *routes)


def _decode_result_pg(frame: Buffer, frame_id: int, max_frame_bytes: int) -> ResultPg:
    expect(frame, PREFIX.size + _RESULT.size + _TRANSFER.size)
    first, count, num_routes, hidden, dtype_code = _RESULT.unpack_from(frame, PREFIX.size)
    dtype = dtype_of(dtype_code)
    if not count or not hidden or first + count > num_routes:
        raise bad(f"routes {first} to {first + count} of {num_routes}, {hidden} wide")
    _check_size(count, hidden, dtype, max_frame_bytes)
    transfer = _TRANSFER.unpack_from(frame, PREFIX.size + _RESULT.size)
    return ResultPg(frame_id, first, num_routes, dtype, count, hidden, *transfer)


def _decode_taken(frame: Buffer) -> AckPg:
    expect(frame, PREFIX.size + _TAKEN.size)
    generation, count, ended = _TAKEN.unpack_from(frame, PREFIX.size)
    if ended > 1:
        raise bad(f"ended is {ended}, neither 0 nor 1")
    return AckPg(generation, count, bool(ended))


def _check_size(num_rows: int, hidden: int, dtype: torch.dtype, max_frame_bytes: int) -> None:
    """So much memory is taken on the word of the announcement."""
    num_bytes = num_rows * hidden * dtype.itemsize
    if num_bytes > max_frame_bytes:
        raise bad(f"a transfer of {num_bytes} bytes; the limit is {max_frame_bytes}")


def _begin(version: int, kind: Kind, frame_id: int) -> bytes:
    assert version >= PAIRS_SINCE, f"wire version {version} has no {kind.name} frames"
    return prefix(version, kind, frame_id)
