"""The worker's end of a lane's pairs, one generation after the other: large rows beside the stream instead of on it.

Knows nothing of routes' meaning and of how rows travel. Belongs to the reactor's thread. A generation that has ended is followed
by the next, after a pause; meanwhile everything goes over the stream.
"""

import dataclasses
import math
import time
from collections.abc import Callable

import torch

from ...proto.codec import Dispatch, Result, encode_dispatch
from ...proto.errors import Code, FleetError
from ...proto.group_frames import (
    AckPg,
    DispatchPg,
    GroupFrame,
    GroupOffer,
    ResultPg,
    encode_ack_pg,
    encode_dispatch_pg,
    encode_group_offer,
)
from ...proto.rows import Rows
from ...transport.pair import Pair
from ...transport.pair_group import PairSettings, host_pair
from ...transport.reactor import Reactor, Timer
from .connection import Connection, Owner

_FIRST_PAUSE_S = 0.05
_MAX_PAUSE_S = 10.0


class WorkerPairs:
    """``send`` puts a frame on the stream, from any thread."""

    def __init__(
        self,
        settings: PairSettings,
        lane: Owner,
        connection: Connection,
        reactor: Reactor,
        send: Callable[[bytes], None],
        version: int,
    ) -> None:
        self._settings, self._lane, self._connection = settings, lane, connection
        self._reactor, self._send, self._version = reactor, send, version
        self._frames: dict[int, tuple[Dispatch, float]] = {}  # that went by a pair, and when each expires
        self._pause_s = _FIRST_PAUSE_S
        self._next: Timer | None = None
        self.pair = self._begin(1)

    def post(self, frame: Dispatch) -> bool:
        if frame.rows.nbytes < self._settings.least_bytes or not self.pair.usable:
            return False
        generation, rows = self.pair.generation, frame.rows

        def announce(number: int) -> None:
            paired = DispatchPg(
                frame.frame_id, frame.fingerprint, frame.epoch, frame.layer, frame.priority, frame.timeout_us,
                rows.dtype, rows.count, rows.width, generation, number, frame.route_rows, frame.route_experts,
            )  # fmt: skip
            self._send(encode_dispatch_pg(paired, self._version))

        expires_at = time.monotonic() + frame.timeout_us / 1e6
        self._frames[frame.frame_id] = frame, expires_at
        if self.pair.offer(frame.frame_id, rows.tensor, expires_at, announce, lambda: self._resend(frame.frame_id)):
            return True
        del self._frames[frame.frame_id]
        return False

    def received(self, frame: GroupFrame) -> None:
        """Raises FleetError for what does not fit."""
        match frame:
            case AckPg() if frame.generation == self.pair.generation:
                self.pair.taken(frame)
                if frame.count:
                    self._pause_s = _FIRST_PAUSE_S
                if frame.ended and self._next is None:
                    self._next = self._reactor.call_later(self._pause_s, self._renew)
                    self._pause_s = min(_MAX_PAUSE_S, 2 * self._pause_s)
            case ResultPg() if frame.generation == self.pair.generation:
                self._expect(frame)
            case AckPg() | ResultPg() if frame.generation < self.pair.generation:
                pass  # both ends have ended it; what it had comes over the stream
            case _:
                raise FleetError(Code.BAD_FRAME, f"{self._lane.seat} sent a misfit {type(frame).__name__} frame")

    def cancel(self, frame_id: int) -> bool:
        """Its announcement went over the stream, and so does its cancel."""
        return False

    def free(self, frame_id: int) -> None:
        self._frames.pop(frame_id, None)

    def close(self) -> None:
        if self._next is not None:
            self._next.cancel()
        self._frames.clear()
        self.pair.close()

    def _begin(self, generation: int) -> Pair:
        def tell(address: str) -> None:
            self._send(encode_group_offer(GroupOffer(generation, address), self._version))

        return Pair(
            f"{self._lane.seat} at {self._lane.address}",
            generation,
            lambda: host_pair(self._settings, self._lane.address, tell),
            lambda taken: self._send(encode_ack_pg(taken, self._version)),
        )

    def _renew(self) -> None:
        self._next = None
        self.pair = self._begin(self.pair.generation + 1)

    def _expect(self, frame: ResultPg) -> None:
        _, expires_at = self._frames.get(frame.frame_id, (None, math.inf))

        def take(rows: torch.Tensor) -> None:
            result = Result(frame.frame_id, frame.first_route, frame.num_routes, Rows.of(rows))
            self._reactor.post(self._lane.answered, self._connection, result)

        self.pair.expect(frame.number, (frame.count, frame.hidden), frame.dtype, expires_at, take)

    def _resend(self, frame_id: int) -> None:
        """Over the stream, if somebody still waits for it."""
        if frame_id in self._frames:
            frame, expires_at = self._frames[frame_id]
            left_us = int((expires_at - time.monotonic()) * 1e6)
            self._send(encode_dispatch(dataclasses.replace(frame, timeout_us=left_us), self._version))
