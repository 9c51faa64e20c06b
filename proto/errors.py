"""Errors that cross a process boundary, each with the gRPC status it travels under.

Knows nothing of who raises them. On a lane an error is a frame with a ``Code``. On a unary call or a stream ``abort`` puts the
code's name into the trailing metadata and ``CODE: message`` into the details, and ``from_call`` restores it on the other side.

gRPC counts both as metadata, of which a client takes 8 KiB for sure, what is beyond by chance, and nothing above 16 KiB. It counts them
as they travel: what is not printable ASCII takes three bytes a byte. So details are shortened to a part of that.
"""

import enum
from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate
from typing import Any, NoReturn

import grpc

MAX_DETAILS_BYTES = 4096  # as they travel
_CODE_KEY = "expertfleet-code"
_ELLIPSIS = "…"


class Code(enum.IntEnum):
    """Why a peer refused or failed; the numbers are part of the wire and never reused."""

    BAD_FRAME = 1
    FRAME_TOO_LARGE = 2
    WIRE_VERSION = 3
    FOREIGN_CHECKPOINT = 4
    WRONG_DTYPE = 5
    STALE_EPOCH = 6
    NOT_HELD = 7
    EXPIRED = 8
    NON_FINITE = 9
    DRAINING = 10
    INTERNAL = 11
    LANE_LOST = 12
    NO_REPLICA = 13
    DEADLINE = 14
    OVERLOADED = 15
    WRONG_NUMERICS = 16
    BAD_REQUEST = 17
    UNSUPPORTED = 18
    CONTEXT_LENGTH = 19
    NOT_READY = 20
    UNAUTHENTICATED = 21
    CANCELLED = 22
    WORKER_DEATHS = 23


_STATUS = {
    Code.BAD_FRAME: grpc.StatusCode.INVALID_ARGUMENT,
    Code.FRAME_TOO_LARGE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Code.WIRE_VERSION: grpc.StatusCode.FAILED_PRECONDITION,
    Code.FOREIGN_CHECKPOINT: grpc.StatusCode.FAILED_PRECONDITION,
    Code.WRONG_DTYPE: grpc.StatusCode.FAILED_PRECONDITION,
    Code.STALE_EPOCH: grpc.StatusCode.FAILED_PRECONDITION,
    Code.NOT_HELD: grpc.StatusCode.NOT_FOUND,
    Code.EXPIRED: grpc.StatusCode.DEADLINE_EXCEEDED,
    Code.NON_FINITE: grpc.StatusCode.DATA_LOSS,
    Code.DRAINING: grpc.StatusCode.UNAVAILABLE,
    Code.INTERNAL: grpc.StatusCode.INTERNAL,
    Code.LANE_LOST: grpc.StatusCode.UNAVAILABLE,
    Code.NO_REPLICA: grpc.StatusCode.UNAVAILABLE,
    Code.DEADLINE: grpc.StatusCode.DEADLINE_EXCEEDED,
    Code.OVERLOADED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Code.WRONG_NUMERICS: grpc.StatusCode.FAILED_PRECONDITION,
    Code.BAD_REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
    Code.UNSUPPORTED: grpc.StatusCode.UNIMPLEMENTED,
    Code.CONTEXT_LENGTH: grpc.StatusCode.OUT_OF_RANGE,
    Code.NOT_READY: grpc.StatusCode.UNAVAILABLE,
    Code.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    Code.CANCELLED: grpc.StatusCode.CANCELLED,
    Code.WORKER_DEATHS: grpc.StatusCode.ABORTED,
}


class FleetError(Exception):
    """A typed failure; ``str(error)`` is one line for people, ``error.code`` is for programs."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code

    @property
    def status(self) -> grpc.StatusCode:
        return _STATUS[self.code]

    @property
    def details(self) -> str:
        """The text of the gRPC status, ``CODE: message``, at most ``MAX_DETAILS_BYTES`` as they travel."""
        return _shortened(f"{self.code.name}: {self}", MAX_DETAILS_BYTES)


async def abort(context: grpc.aio.ServicerContext, error: FleetError) -> NoReturn:
    """Ends a call with this error."""
    await context.abort(error.status, error.details, ((_CODE_KEY, error.code.name),))
    raise AssertionError("abort raises")


def from_call(error: Any) -> FleetError:
    """The error behind a ``grpc.RpcError`` of a call."""
    return from_details(error.code(), error.details(), error.trailing_metadata())


def from_details(
    status: grpc.StatusCode, details: str | None, trailing: Iterable[tuple[str, str | bytes]] | None = None
) -> FleetError:
    """The error behind a gRPC status; a status that no peer of ours set becomes LANE_LOST or INTERNAL.

    It is a peer's if the trailing metadata has a code, or, as a process of the version before says it there alone, if the details begin
    with one that travels under this status.
    """
    name, separator, message = (details or "").partition(": ")
    told = dict(trailing or ()).get(_CODE_KEY)
    if told is None and separator and name in Code.__members__ and _STATUS[Code[name]] is status:
        told = name
    if told in Code.__members__:
        return FleetError(Code[str(told)], message if told == name else details or status.name)
    lost = status in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN)
    return FleetError(Code.LANE_LOST if lost else Code.INTERNAL, f"{status.name}: {details or 'no details'}")


def _shortened(text: str, max_bytes: int) -> str:
    """The text if it travels in at most ``max_bytes``, else as many of its first characters as do, and "…". What is no character,
    half of a surrogate pair, is spelt out."""
    text = text[: max_bytes + 1].encode(errors="backslashreplace").decode()[: max_bytes + 1]
    ends = list(accumulate(map(_travelling_bytes, text)))
    if ends[-1] <= max_bytes:
        return text
    return text[: bisect_right(ends, max_bytes - _travelling_bytes(_ELLIPSIS))] + _ELLIPSIS


def shown(value: object, limit: int = 80) -> str:
    """Somebody's value for an error message, shortened."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + _ELLIPSIS


def _travelling_bytes(character: str) -> int:
    """gRPC percent-encodes details byte by byte."""
    return 1 if " " <= character <= "~" and character != "%" else 3 * len(character.encode())
