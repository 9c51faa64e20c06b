"""One frame from its sending to its end: the request, its state, and what its shard has answered so far.

Knows nothing of connections. The dispatch that made it owns it and keeps its memory; a lane finds it by its id. The lane counts answers,
also after the dispatch has given the frame up: the shard may answer each route once, in order, or end the frame with one error.
"""

from enum import IntEnum
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from ...kernels.native_lanes import Calls
from ...proto.codec import Dispatch, Result
from ...proto.errors import FleetError
from ...proto.frame_prefix import DTYPE_CODES, Buffer
from ...proto.rows import Rows
from .latency import ExpertCost, LatencyTracker


class FrameState(IntEnum):
    """What a frame is to its dispatch; ``dispatch/transitions.py`` has the changes."""

    SENT = 0  # the one frame for its routes
    SLOW = 1  # replicas were asked as well
    HEDGE = 2  # asks a replica for routes of a slow frame
    RECHECK = 3  # asks a second replica for answers that are not finite
    ANSWERED = 4  # every route has an answer
    FAILED = 5  # ended by an error; what was answered before counts
    GIVEN_UP = 6  # what comes from now on is passed over

    @property
    def is_over(self) -> bool:
        return self >= FrameState.ANSWERED


class FrameOwner(Protocol):
    """The dispatch that a frame belongs to."""

    def on_answer(self, frame: "FrameInFlight", answer: Result | FleetError) -> None: ...

    def on_rows_written(self, frame: "FrameInFlight", count: int) -> None:
        """A compiled call has written down where the rows of the next ``count`` routes are."""
        ...


class FrameLane(Protocol):
    """What a dispatch uses of the lane that carries the frame."""

    seat: str
    address: str
    pace: LatencyTracker
    expert_pace: ExpertCost
    quarantined: bool

    def post(self, frame: "FrameInFlight") -> None: ...
    def sent(self, frame: "FrameInFlight") -> None: ...
    def ignore(self, frame: "FrameInFlight") -> None: ...
    def drop(self, frame: "FrameInFlight") -> None: ...
    def observe(self, num_experts: int, seconds: float, now: float) -> None: ...
    def suspect(self) -> None: ...


class FrameInFlight:
    """The routes of one frame to one shard, in the frame's order (ascending by expert).

    Either ``wire`` is to be posted, with the rows ``row_ids`` of its own (None: all), or a compiled call has begun to send it: then
    ``routes_at`` is the address of its routes, int64 [N], and ``unsent`` the buffers of the frame and how many bytes still wait.
    """

    __slots__ = (
        "all_counted", "deadline", "dtype", "due_at", "failed", "frame_id", "hedge_of", "hedges", "hidden", "lane", "memory",
        "num_answered", "num_experts", "num_routes", "num_rows", "num_taken", "owner", "places", "routes", "routes_at", "row_ids",
        "rows", "sent_at", "state", "unsent", "wire",
    )  # fmt: skip

    def __init__(
        self,
        owner: FrameOwner | None,
        lane: FrameLane,
        frame_id: int,
        routes: npt.NDArray[np.int64],
        rows: Rows,
        num_rows: int,
        num_experts: int,
    ) -> None:
        self.owner = owner  # None once the dispatch needs no more answers
        self.lane = lane
        self.frame_id = frame_id
        self.routes = routes
        self.num_routes = len(routes)
        self.rows: Rows | None = rows  # of the layer [T, H]; the frame carries ``num_rows`` of them
        self.hidden, self.dtype = rows.width, rows.dtype
        self.num_rows = num_rows
        self.num_experts = num_experts  # that it activates
        self.state = FrameState.SENT
        self.wire: Dispatch | None = None
        self.row_ids: torch.Tensor | None = None
        self.routes_at = 0
        self.unsent: tuple[tuple[Buffer, ...], int] | None = None
        self.places = (
            0  # address of int64 [T·K]: where compiled calls write the address of each route's row; 0: nowhere
        )
        self.memory: object = None  # in which the answers lie; stays for as long as the frame does
        self.num_answered = 0  # routes, as the lane counts them
        self.num_taken = 0  # routes, as the dispatch counts them: none after it gave the frame up
        self.failed = False  # the shard has ended it with an error
        self.all_counted = True  # False where answers came that were perhaps not looked at
        self.sent_at = 0.0
        self.deadline = 0.0  # of the layer when it was sent, which is what the shard was told
        self.due_at: float | None = None  # from then on the wait is unusually long; None until the dispatch asks
        self.hedges: list[FrameInFlight] = []
        self.hedge_of: FrameInFlight | None = None

    @property
    def row_bytes(self) -> int:
        return self.hidden * self.dtype.itemsize

    @property
    def num_left(self) -> int:
        """Routes without an answer; 0 also after an error."""
        return 0 if self.failed else self.num_routes - self.num_answered

    @property
    def unanswered(self) -> npt.NDArray[np.int64]:
        """The routes whose rows the dispatch has not taken."""
        return self.routes[self.num_taken :]

    def take(self, result: Result) -> bool:
        """Counts a result; False where it does not answer the next routes with rows as they were asked for."""
        first, count, rows, num_routes = result.first_route, result.rows.count, result.rows, self.num_routes
        is_next = first == self.num_answered or (first > self.num_answered and not self.all_counted)
        if not is_next or result.num_routes != num_routes or first + count > num_routes:
            return False
        if (rows.width, rows.dtype) != (self.hidden, self.dtype):
            return False
        self.num_answered = first + count
        return True

    def expect(self, calls: Calls, end: int, results: int) -> None:
        """Has the end at this address take the answers: rows [N, H] to the address ``results``."""
        calls.expect(
            end, self.frame_id, self.num_routes, self.hidden, self.row_bytes, DTYPE_CODES[self.dtype],
            results, self.routes_at, self.places,
        )  # fmt: skip

    def let_go(self) -> None:
        """The dispatch needs nothing more of it; the lane may have to know the id for a while."""
        self.owner = self.rows = self.wire = self.row_ids = self.unsent = self.memory = self.hedge_of = None
        self.places = 0
        self.hedges = []

    def __str__(self) -> str:
        return f"{self.num_answered} of {self.num_routes} answered, rows {self.hidden} wide, {self.dtype}"
