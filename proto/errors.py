"""Errors that cross a process boundary, each with the gRPC status it travels under.

Knows nothing of who raises them. On a lane an error is a frame with a ``Code``; on a unary call or a stream it is a
gRPC status whose details start with the code's name, so that ``from_details`` restores it on the other side.
"""

import enum

import grpc


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
        """The text of the gRPC status: ``CODE: message``."""
        return f"{self.code.name}: {self}"


def from_details(status: grpc.StatusCode, details: str | None) -> FleetError:
    """The error behind a gRPC status; a status that no peer of ours set becomes LANE_LOST or INTERNAL."""
    name, separator, message = (details or "").partition(": ")
    if separator and name in Code.__members__:
        return FleetError(Code[name], message)
    lost = status in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN)
    if status is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return FleetError(Code.FRAME_TOO_LARGE, details or status.name)
    return FleetError(Code.LANE_LOST if lost else Code.INTERNAL, f"{status.name}: {details or 'no details'}")
