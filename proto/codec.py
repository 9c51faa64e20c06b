"""Frames: the messages of a lane between an attention worker and an expert shard.

Knows nothing of gRPC, of placement or of who computes.
1. Both sides send HELLO; 2. the worker sends DISPATCH (and CANCEL), 3. the shard answers each DISPATCH with RESULT
pieces that cover its routes in their order, or with one ERROR.

After the prefix that every frame has (``frame_prefix.py``), by kind (``group_frames.py`` has more):

* HELLO     a msgpack map (see ``Hello``), at most 64 KiB
* DISPATCH  44-byte header and 4 zero bytes, rows [R, H], route_rows int32 [N], route_experts int32 [N]
* RESULT    24-byte header, rows [n, H] for the routes first_route .. first_route + n - 1
* ERROR     code u16, 6 zero bytes, UTF-8 message of at most 1,024 bytes
* CANCEL    nothing
* DISPATCH_SHM    as DISPATCH, but instead of the rows where they lie in shared memory and where the results belong, u64 each
* RESULT_SHM    first_route u32, count u32, num_routes u32, 4 zero bytes: these results lie in shared memory
"""

import dataclasses
import struct
from collections.abc import Callable
from dataclasses import asdict, dataclass

import msgpack
import torch

from . import group_frames
from .dispatch_header import (
    DISPATCH_HEADER,
    DispatchHeader,
    Indices,
    pack_dispatch_header,
    pack_routes,
    unpack_dispatch_header,
    unpack_routes,
)
from .errors import Code, FleetError
from .frame_prefix import (
    DTYPE_CODES,
    MAGIC,
    NO_PAIR,
    OLDEST_WIRE_VERSION,
    PAIRS_SINCE,
    PREFIX,
    WIRE_VERSION,
    Buffer,
    Kind,
    at_least,
    bad,
    dtype_of,
    expect,
    prefix,
)
from .rows import Rows

MAX_PIECE_BYTES = 1 << 20
MAX_MESSAGE_BYTES = 1024
MAX_HELLO_BYTES = 1 << 16
FINGERPRINT_BYTES = 8

_RESULT = struct.Struct("<IIIIB7x")
_ERROR = struct.Struct("<H6x")
_PLACES = struct.Struct("<QQ")
_FILLED = struct.Struct("<III4x")
DTYPE_NAMES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True, slots=True)
class Hello:
    """Who is at this end of the lane; the shard refuses a worker whose fingerprint or dtype is not its own."""

    seat: str
    fingerprint: str
    dtype: str
    max_frame_bytes: int
    oldest: int = OLDEST_WIRE_VERSION
    newest: int = WIRE_VERSION  # in the prefix, not in the map
    pair: str = NO_PAIR  # the transport through which this end would exchange large rows

    def version_with(self, other: "Hello") -> int:
        """The newest version that both ends speak. Raises FleetError WIRE_VERSION when there is none."""
        version = min(self.newest, other.newest)
        if version < max(self.oldest, other.oldest):
            theirs, own = _span(other.oldest, other.newest), _span(self.oldest, self.newest)
            raise FleetError(Code.WIRE_VERSION, f"wire version {theirs}; this end speaks {own}")
        return version


@dataclass(slots=True)
class Dispatch(DispatchHeader):
    """Hidden rows for one layer of one shard, each row once, and the (row, expert) routes over them."""

    rows: Rows  # [R, H] bfloat16 or float32
    route_rows: Indices  # [N]
    route_experts: Indices  # [N]

    def with_rows(self, rows: Rows) -> "Dispatch":
        return dataclasses.replace(self, rows=rows)


@dataclass(slots=True)
class Result:
    """One output row per route, for a contiguous piece of a DISPATCH frame's routes."""

    frame_id: int
    first_route: int
    num_routes: int
    rows: Rows  # [n, H]


@dataclass(frozen=True, slots=True)
class Error:
    frame_id: int
    code: Code
    message: str


@dataclass(frozen=True, slots=True)
class Cancel:
    frame_id: int


@dataclass(slots=True)
class DispatchShm(DispatchHeader):
    """A DISPATCH whose rows [num_rows, hidden] lie in shared memory; results [N, hidden] belong there as well."""

    dtype: torch.dtype
    num_rows: int
    hidden: int
    rows_at: int
    results_at: int
    route_rows: Indices  # [N]
    route_experts: Indices  # [N]

    def with_rows(self, rows: Rows) -> Dispatch:
        return Dispatch(
            self.frame_id, self.fingerprint, self.epoch, self.layer, self.priority, self.timeout_us,
            rows, self.route_rows, self.route_experts,
        )  # fmt: skip


@dataclass(slots=True)
class ResultShm:
    """Results that the shard has written to shared memory."""

    frame_id: int
    first_route: int
    count: int
    num_routes: int


_HELLO_FIELDS = {field.name for field in dataclasses.fields(Hello)}
Frame = Hello | Dispatch | Result | Error | Cancel | DispatchShm | ResultShm | group_frames.GroupFrame


def short_fingerprint(fingerprint: str) -> bytes:
    """The first eight bytes of a hex SHA-256, as every DISPATCH frame carries them."""
    return bytes.fromhex(fingerprint[: 2 * FINGERPRINT_BYTES])


def encode_hello(hello: Hello) -> bytes:
    fields = asdict(hello)
    newest = fields.pop("newest")
    if newest < PAIRS_SINCE:
        del fields["pair"]
    return prefix(newest, Kind.HELLO, 0) + bytes(msgpack.packb(fields))


def encode_dispatch(frame: Dispatch, version: int = WIRE_VERSION) -> bytes:
    return b"".join(dispatch_parts(frame, version))


def dispatch_parts(frame: Dispatch, version: int) -> tuple[Buffer, ...]:
    """The frame in parts, its rows uncopied if they are many."""
    rows = frame.rows
    header = pack_dispatch_header(frame, rows.dtype, rows.count, len(frame.route_rows), rows.width)
    begin = prefix(version, Kind.DISPATCH, frame.frame_id) + header
    return begin, rows.data(), *pack_routes(frame.route_rows, frame.route_experts)


def encode_dispatch_shm(frame: DispatchShm, version: int = WIRE_VERSION) -> bytes:
    header = pack_dispatch_header(frame, frame.dtype, frame.num_rows, len(frame.route_rows), frame.hidden)
    places = _PLACES.pack(frame.rows_at, frame.results_at)
    begin = prefix(version, Kind.DISPATCH_SHM, frame.frame_id)
    return b"".join((begin, header, places, *pack_routes(frame.route_rows, frame.route_experts)))


def dispatch_shm_rows(max_bytes: int, top_k: int) -> int:
    """Rows whose ``top_k`` routes each fit a DISPATCH_SHM frame."""
    return (max_bytes - PREFIX.size - DISPATCH_HEADER.size - _PLACES.size) // (8 * top_k)


def dispatch_rows(max_frame_bytes: int, row_bytes: int, top_k: int) -> int:
    """Rows that fit a DISPATCH frame with ``top_k`` routes each."""
    return (max_frame_bytes - PREFIX.size - DISPATCH_HEADER.size) // (row_bytes + 8 * top_k)


def result_rows(hidden: int, itemsize: int) -> int:
    """Rows that fit a RESULT piece; at least 1."""
    return max(1, (MAX_PIECE_BYTES - PREFIX.size - _RESULT.size) // (hidden * itemsize))


def encode_result(frame_id: int, first_route: int, num_routes: int, rows: Rows, version: int = WIRE_VERSION) -> bytes:
    """One piece: ``rows`` [n, H] answer the routes from ``first_route`` on, of ``num_routes`` in all."""
    return b"".join(result_parts(frame_id, first_route, num_routes, rows, version))


def result_parts(frame_id: int, first_route: int, num_routes: int, rows: Rows, version: int) -> tuple[Buffer, ...]:
    """The same in parts, its rows uncopied if they are many."""
    header = _RESULT.pack(first_route, rows.count, num_routes, rows.width, DTYPE_CODES[rows.dtype])
    return prefix(version, Kind.RESULT, frame_id) + header, rows.data()


def encode_error(frame_id: int, error: FleetError, version: int = WIRE_VERSION) -> bytes:
    message = str(error).encode()[:MAX_MESSAGE_BYTES].decode(errors="ignore").encode()
    return prefix(version, Kind.ERROR, frame_id) + _ERROR.pack(error.code) + message


def encode_cancel(frame_id: int, version: int = WIRE_VERSION) -> bytes:
    return prefix(version, Kind.CANCEL, frame_id)


def encode_result_shm(filled: ResultShm, version: int = WIRE_VERSION) -> bytes:
    places = _FILLED.pack(filled.first_route, filled.count, filled.num_routes)
    return prefix(version, Kind.RESULT_SHM, filled.frame_id) + places


def decode(frame: Buffer, max_frame_bytes: int, version: int = WIRE_VERSION) -> Frame:
    """Parses and bounds-checks one frame of a lane of this version; its rows and routes are views of ``frame``.

    Raises FleetError: FRAME_TOO_LARGE, WIRE_VERSION, or BAD_FRAME with what did not fit.
    """
    if len(frame) > max_frame_bytes:
        raise FleetError(Code.FRAME_TOO_LARGE, f"frame of {len(frame)} bytes; the limit is {max_frame_bytes}")
    if len(frame) < PREFIX.size:
        raise bad(f"{len(frame)} bytes; a frame has at least {PREFIX.size}")
    magic, borne, kind, zero, frame_id = PREFIX.unpack_from(frame)
    if magic != MAGIC or zero:
        raise bad(f"starts with {frame[:8].hex()}, not with a frame prefix")
    if borne != version and kind not in _WHATEVER_THEY_BEAR:
        raise FleetError(Code.WIRE_VERSION, f"wire version {borne}; this lane's is {version}")
    if kind in _DECODERS:
        return _DECODERS[kind](frame, frame_id)
    if kind == Kind.HELLO:
        return _decode_hello(frame, borne)
    if kind in group_frames.KINDS and version >= PAIRS_SINCE:
        return group_frames.decode(frame, Kind(kind), frame_id, max_frame_bytes)
    raise bad(f"unknown kind {kind}")


def _decode_dispatch(frame: Buffer, frame_id: int) -> Dispatch:
    asked, dtype, num_rows, num_routes, hidden = unpack_dispatch_header(frame)
    start = PREFIX.size + DISPATCH_HEADER.size
    after_rows = start + num_rows * hidden * dtype.itemsize
    routes = unpack_routes(frame, after_rows, num_routes, num_rows)
    return Dispatch(frame_id, *asked, Rows(num_rows, hidden, dtype, frame, start), *routes)


def _decode_dispatch_shm(frame: Buffer, frame_id: int) -> DispatchShm:
    asked, dtype, num_rows, num_routes, hidden = unpack_dispatch_header(frame)
    start = PREFIX.size + DISPATCH_HEADER.size
    at_least(frame, start + _PLACES.size)
    rows_at, results_at = _PLACES.unpack_from(frame, start)
    routes = unpack_routes(frame, start + _PLACES.size, num_routes, num_rows)
    return DispatchShm(frame_id, *asked, dtype, num_rows, hidden, rows_at, results_at, *routes)


def _decode_result_shm(frame: Buffer, frame_id: int) -> ResultShm:
    expect(frame, PREFIX.size + _FILLED.size)
    first, count, num_routes = _FILLED.unpack_from(frame, PREFIX.size)
    if not count or first + count > num_routes:
        raise bad(f"routes {first} to {first + count} of {num_routes}")
    return ResultShm(frame_id, first, count, num_routes)


def _decode_result(frame: Buffer, frame_id: int) -> Result:
    at_least(frame, PREFIX.size + _RESULT.size)
    first, piece, num_routes, hidden, dtype_code = _RESULT.unpack_from(frame, PREFIX.size)
    dtype = dtype_of(dtype_code)
    if not piece or not hidden or first + piece > num_routes:
        raise bad(f"routes {first} to {first + piece} of {num_routes}, {hidden} wide")
    start = PREFIX.size + _RESULT.size
    expect(frame, start + piece * hidden * dtype.itemsize)
    return Result(frame_id, first, num_routes, Rows(piece, hidden, dtype, frame, start))


def _decode_error(frame: Buffer, frame_id: int) -> Error:
    start = PREFIX.size + _ERROR.size
    at_least(frame, start)
    if len(frame) > start + MAX_MESSAGE_BYTES:
        raise bad(f"error message of {len(frame) - start} bytes; the limit is {MAX_MESSAGE_BYTES}")
    (code,) = _ERROR.unpack_from(frame, PREFIX.size)
    known = Code(code) if code in Code._value2member_map_ else Code.INTERNAL
    return Error(frame_id, known, bytes(frame[start:]).decode(errors="replace"))


def _decode_cancel(frame: Buffer, frame_id: int) -> Cancel:
    expect(frame, PREFIX.size)
    return Cancel(frame_id)


def _decode_hello(frame: Buffer, newest: int) -> Hello:
    """What a version newer than this end's has added to the greeting is for ends that know it."""
    if len(frame) > PREFIX.size + MAX_HELLO_BYTES:
        raise bad(f"greeting of {len(frame)} bytes; the limit is {MAX_HELLO_BYTES}")
    try:
        fields = msgpack.unpackb(frame[PREFIX.size :], strict_map_key=True)
        if newest > WIRE_VERSION:
            fields = {name: value for name, value in fields.items() if name in _HELLO_FIELDS}
        hello = Hello(**fields, newest=newest)
    except (ValueError, TypeError, AttributeError, msgpack.UnpackException) as error:
        raise bad(f"unreadable greeting ({type(error).__name__})") from error
    texts, numbers = (hello.seat, hello.fingerprint, hello.dtype, hello.pair), (hello.max_frame_bytes, hello.oldest)
    if not all(isinstance(text, str) for text in texts) or not all(type(number) is int for number in numbers):
        raise bad("a greeting field has the wrong type")
    if not 1 <= hello.oldest <= newest:
        raise bad(f"a greeting of wire version {hello.oldest} to {newest}")
    return hello


def _span(oldest: int, newest: int) -> str:
    return f"{newest}" if oldest == newest else f"{oldest} to {newest}"


_WHATEVER_THEY_BEAR = {int(Kind.HELLO), int(Kind.ERROR)}
_DECODERS: dict[int, Callable[[Buffer, int], Frame]] = {  # plain numbers: an enumeration's members are slow to look up
    int(Kind.DISPATCH): _decode_dispatch,
    int(Kind.RESULT): _decode_result,
    int(Kind.ERROR): _decode_error,
    int(Kind.CANCEL): _decode_cancel,
    int(Kind.DISPATCH_SHM): _decode_dispatch_shm,
    int(Kind.RESULT_SHM): _decode_result_shm,
}
