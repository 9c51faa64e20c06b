"""What both ends of lanes do with most frames, in few compiled calls (``cpp/lanes.cpp``); all that is unusual is left to Python.

Knows nothing of what is done with rows. The calls keep Python's lock: they do not wait for anything, and what else is told to a socket
is told before or after.
"""

import ctypes
import logging
import os
from collections.abc import Callable
from functools import cache
from typing import ClassVar

from .mirrors import check_mirrors
from .native import Native, load, older

_log = logging.getLogger(__name__)
NOTHING, HANDLED = -1, -2  # where a call would say a size
LENGTH_BYTES = 8  # before a frame over TCP
_POINTER, _COUNT, _ID = ctypes.c_void_p, ctypes.c_int64, ctypes.c_uint64


class AdmissionFilter(ctypes.Structure):
    """What a shard lets in; ``held`` is the address of bool [layers, experts]."""

    fingerprint: int
    min_epoch: "ctypes.Array[ctypes.c_uint64]"
    newest_epoch: "ctypes.Array[ctypes.c_uint64]"
    held: int
    num_layers: int
    num_experts: int
    hidden: int
    dtype: int
    item_bytes: int
    _fields_: ClassVar = [
        ("fingerprint", _ID),
        ("min_epoch", _ID * 2),
        ("newest_epoch", _ID * 2),
        ("held", _POINTER),
        *((name, _COUNT) for name in ("num_layers", "num_experts", "hidden", "dtype", "item_bytes")),
    ]


class ShardEnd(ctypes.Structure):
    """A shard's end of a lane and, from ``size`` on, the fast-path frame that came last; ``memory`` is shared, None over TCP."""

    socket: int
    version: int
    most_routes: int
    memory: int | None
    memory_bytes: int
    size: int
    frame_id: int
    layer: int
    num_rows: int
    num_routes: int
    rows: int
    route_rows: int
    route_experts: int
    results: int
    _fields_: ClassVar = [
        *((name, _COUNT) for name in ("socket", "version", "most_routes")),
        ("filter", ctypes.POINTER(AdmissionFilter)),
        ("memory", _POINTER),
        ("memory_bytes", _COUNT),
        ("size", _COUNT),
        ("frame_id", _ID),
        *((name, _COUNT) for name in ("layer", "num_rows", "num_routes")),
        *((name, _POINTER) for name in ("rows", "route_rows", "route_experts", "results")),
    ]


class Expected(ctypes.Structure):
    """A frame whose answers are awaited: what compiled calls alone use."""

    _fields_: ClassVar = [
        ("frame_id", _ID),
        *((name, _COUNT) for name in ("num_routes", "num_answered", "hidden", "row_bytes", "dtype")),
        *((name, _POINTER) for name in ("results", "routes", "places")),
    ]


class Came(ctypes.Structure):
    """Answers to some routes of a frame: what compiled calls alone use."""

    _fields_: ClassVar = [("frame_id", _ID), ("first", _COUNT), ("count", _COUNT)]


class WorkerEnd(ctypes.Structure):
    """A worker's end of a lane; ``socket`` is -1 where no frame takes the fast path, ``clear`` the address of a number that is not 0 while
    nothing waits to be sent.

    Over shared memory, at ``memory``, the next frame may take ``area_bytes`` from ``area`` on, and 0 are left then.
    """

    socket: int
    version: int
    clear: int | None
    most_frame_bytes: int
    most_answer_bytes: int
    seconds_per_expert: float
    memory: int | None
    area: int
    area_bytes: int
    body_left: int
    num_expected: int
    num_came: int
    came: "ctypes.Array[ctypes.c_int64]"  # frame, first route and number of routes of each
    _fields_: ClassVar = [
        ("socket", _COUNT),
        ("version", _COUNT),
        ("clear", _POINTER),
        ("most_frame_bytes", _COUNT),
        ("most_answer_bytes", _COUNT),
        ("seconds_per_expert", ctypes.c_double),
        ("memory", _POINTER),
        ("area", _COUNT),
        ("area_bytes", _COUNT),
        ("body", _POINTER),
        ("body_left", _COUNT),
        ("under_way", Came),
        ("num_came", _COUNT),
        ("came", _COUNT * (3 * 16)),
        ("num_expected", _COUNT),
        ("expected", Expected * 32),
    ]


class FanoutArgs(ctypes.Structure):
    """A layer's question to all shards: each expert is asked of one of its holders, ``replicas`` bool [shards, stride], or where that
    is None of ``owners`` int64 [E], -1 for nobody."""

    fingerprint: int
    epoch: "ctypes.Array[ctypes.c_uint64]"
    num_shards: int
    num_experts: int
    replicas: int | None
    stride: int
    owners: int
    layer: int
    priority: int
    timeout_us: int
    x: int
    num_rows: int
    hidden: int
    row_bytes: int
    dtype: int
    top_k: int
    experts: int
    frame_id: int
    told: int
    _fields_: ClassVar = [
        ("fingerprint", _ID),
        ("epoch", _ID * 2),
        ("num_shards", _COUNT),
        ("ends", ctypes.POINTER(ctypes.POINTER(WorkerEnd))),
        ("num_experts", _COUNT),
        ("replicas", _POINTER),
        ("stride", _COUNT),
        ("owners", _POINTER),
        *((name, _COUNT) for name in ("layer", "priority", "timeout_us")),
        ("x", _POINTER),
        *((name, _COUNT) for name in ("num_rows", "hidden", "row_bytes", "dtype", "top_k")),
        ("experts", _POINTER),
        ("frame_id", _ID),
        ("told", _POINTER),
    ]


MIRRORS = (AdmissionFilter, ShardEnd, Expected, Came, WorkerEnd, FanoutArgs)


class Calls:
    """Each ``take`` and ``give`` returns a size, NOTHING, HANDLED, or what ``check`` raises; ``cpp/lanes.cpp`` says what each does."""

    def __init__(self, native: Native) -> None:
        """Raises ForeignLibraryError where a structure is another one there, and AttributeError for what is not there."""
        library = ctypes.PyDLL(native.path)
        check_mirrors(library, MIRRORS)
        self.ask = library.expertfleet_ask
        self.ask.argtypes, self.ask.restype = [_POINTER], _COUNT
        self.expect = library.expertfleet_expect
        self.expect.argtypes = [_POINTER, _ID, *[_COUNT] * 4, *[_POINTER] * 3]
        self.forget = library.expertfleet_forget
        self.forget.argtypes, self.forget.restype = [_POINTER, _ID], None
        self.take_result_shm = library.expertfleet_take_result_shm
        self.take_results = library.expertfleet_take_results
        self.take_dispatch_shm = library.expertfleet_take_dispatch_shm
        self.take_dispatch = library.expertfleet_take_dispatch
        self.send_result_shm = library.expertfleet_send_result_shm
        self.give_result = library.expertfleet_give_result
        for take in (self.take_dispatch_shm, self.take_dispatch, self.take_result_shm, self.take_results):
            take.argtypes, take.restype = [_POINTER, _POINTER, _COUNT], _COUNT
        self.send_result_shm.argtypes, self.send_result_shm.restype = [_POINTER], _COUNT
        self.give_result.argtypes, self.give_result.restype = [_POINTER, _POINTER], _COUNT


def open_end(end: WorkerEnd, socket: int, version: int, clear: ctypes.c_int64) -> None:
    """Opens the fast path over this socket; the caller then sets the connection's limits."""
    close_end(end)
    end.socket, end.version, end.clear = socket, version, ctypes.addressof(clear)


def each_that_came(end: WorkerEnd, hear: Callable[[int, int], None]) -> None:
    """Tells of the answers that a call has just read: to which frame, and to how many more of its routes."""
    if num_came := end.num_came:
        came = end.came[: 3 * num_came]
        for at in range(0, 3 * num_came, 3):
            hear(came[at], came[at + 2])


def close_end(end: WorkerEnd) -> None:
    """Closes the fast path; what is known of the shard stays."""
    known = end.seconds_per_expert
    ctypes.memset(ctypes.addressof(end), 0, ctypes.sizeof(end))
    end.socket, end.seconds_per_expert = -1, known


def check(size: int) -> int:
    """Raises OSError where the kernel said so."""
    if size < HANDLED:
        error = HANDLED - size
        raise OSError(error, os.strerror(error))
    return size


@cache
def calls() -> Calls | None:
    """None where there is no library that can be used, which is said once. Raises ForeignLibraryError for one of another version."""
    native = load()
    if isinstance(native, Native):
        try:
            return Calls(native)
        except AttributeError as error:
            native = older(native.path, error)
    _log.warning("lanes do without compiled calls: %s", native)
    return None
