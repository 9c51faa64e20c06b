"""One layer's dispatch under way: parts sent to shards, answers gathered, retries, and the deadline.

Knows nothing of lanes' insides and of attention, and belongs to one thread, the engine's. A dispatch ends in exactly one of two
ways: every route answered, or one FleetError; never with a row missing. 1. parts are sent; 2. answers and failures
arrive; a failed part's unanswered routes go to another replica, or are asked again and again until the deadline, which moves on
while nobody holds their experts, as far as the router's patience; 3. what is not finite is asked of a second replica, once
(``nonfinite_check.py``); rows that stay so are ``faults``; 4. the engine awaits the dispatch, calls ``combined``, and closes it, as the
answers lie in memory that is used again.
"""

import functools
import math
import time
from collections.abc import Callable, Generator, Iterable
from typing import Protocol

import numpy as np
import torch

from ...proto.codec import Result
from ...proto.errors import Code, FleetError
from ...proto.rows import Rows
from ..lanes.lane import Lane
from .combine import Answers
from .frame_in_flight import FrameInFlight
from .nonfinite_check import Suspect, faults_of, find_faulty, suspect_routes
from .shard_requests import Routes

# Refusals after which the same routes may be asked of somebody else.
_RETRYABLE = {
    Code.LANE_LOST,
    Code.DRAINING,
    Code.NOT_HELD,
    Code.STALE_EPOCH,
    Code.OVERLOADED,
    Code.INTERNAL,
    Code.FOREIGN_CHECKPOINT,
}
_FIRST_PAUSE_S = 0.02
_MAX_PAUSE_S = 0.5
_NO_ROUTES: Routes = np.empty(0, dtype=np.int64)
_NOTHING = torch.empty(0)


class Sender(Protocol):
    """What a dispatch asks of the router that it belongs to."""

    def build_parts(self, dispatch: "Dispatch", routes: Routes | None) -> tuple[Iterable[FrameInFlight], Routes]: ...

    def watch(self, dispatch: "Dispatch") -> None: ...

    def on_overdue(self, dispatch: "Dispatch", part: FrameInFlight, routes: Routes) -> list[FrameInFlight]: ...

    def on_answered(self, part: FrameInFlight, now: float) -> None: ...

    def on_failed_part(self, dispatch: "Dispatch", seat: str, error: FleetError) -> None: ...

    def build_second_parts(
        self, dispatch: "Dispatch", routes: Routes, doubted: set[str]
    ) -> tuple[Iterable[FrameInFlight], Routes]: ...

    def on_wrong(self, dispatch: "Dispatch", lanes: list[Lane]) -> None: ...

    def park(self, dispatch: "Dispatch", pause_s: float) -> None: ...

    def renew(self, dispatch: "Dispatch") -> None: ...

    def are_lost(self, dispatch: "Dispatch", routes: Routes) -> bool: ...

    def forget(self, dispatch: "Dispatch") -> None: ...


class Dispatch:
    """An awaitable for one layer of one micro-batch."""

    def __init__(
        self,
        router: Sender,
        layer: int,
        x: torch.Tensor,
        topk_ids: torch.Tensor,
        topk_weights: torch.Tensor,
        priority: int,
    ) -> None:
        self.layer = layer
        self.priority = priority
        self.rows = Rows.of(x)  # [T, H]
        self.topk_ids = topk_ids  # [T, K] int64; route t·K + k
        self.top_k = topk_ids.shape[1]
        self.failed_seats: set[str] = set()
        self.error: FleetError | None = None
        self.faults: dict[int, FleetError] = {}  # rows whose output is not finite, and is zero in ``combined``
        self.deadline = 0.0
        self.patience_ends_at = 0.0  # so long experts that nobody holds are waited for
        self.waits_for_experts = False  # that nobody holds
        self.done = False
        self._router = router
        self._parts: dict[int, FrameInFlight] = {}  # without an end
        self._answered: list[FrameInFlight] = []  # whose answers are still needed
        self._waiting = _NO_ROUTES
        self._pause_s = _FIRST_PAUSE_S
        self._refusal = ""
        self._answers = Answers(topk_weights, self.rows.width, self.rows.dtype)
        self._total = _NOTHING
        self._doubts: list[Suspect[Lane]] | None = None  # None until all routes were answered for the first time
        self._num_first_pieces = 0
        self._num_left = topk_ids.numel()
        self._when_done: Callable[[], None] | None = None

    def __await__(self) -> Generator["Dispatch", None, None]:
        if not self.done:
            yield self
        if self.error is not None:
            raise self.error

    @property
    def experts(self) -> Routes:
        """[T·K]"""
        return self.topk_ids.numpy().reshape(-1)

    def when_done(self, call: Callable[[], None]) -> None:
        """``call`` runs once, now if the dispatch is done already."""
        if self.done:
            call()
        else:
            self._when_done = call

    def combined(self) -> torch.Tensor:
        """[T, H] fp32, finite: the weighted sum of the answers, once all are there; ``faults`` are rows of zeros."""
        return self._total

    def close(self) -> None:
        """Gives back the memory of the answers; a dispatch under way ends with CANCELLED."""
        if not self.done:
            self._finish(FleetError(Code.CANCELLED, f"layer {self.layer}: nobody waits for it any more"))
        self._answers.forget()
        _drop(self._answered)

    def start(self, parts: Iterable[FrameInFlight], orphans: Routes) -> None:
        self._send(parts)
        if len(orphans):
            self._park(orphans)
        if not self.done:
            self._router.watch(self)

    def retry_waiting(self) -> None:
        """Somebody may be usable by now: whoever failed before is asked again, too."""
        waiting, self._waiting = self._waiting, _NO_ROUTES
        self.failed_seats.clear()
        if not len(waiting) or self.done:
            return
        if self.waits_for_experts and not self._router.are_lost(self, waiting):
            self.waits_for_experts = False
            self._router.renew(self)  # whoever holds them now has as much time as anybody
        self._reassign(waiting)

    def next_due(self) -> float:
        """When the first of the waits becomes unusual."""
        for part in self._parts.values():
            if part.due_at is None:
                is_first = part.hedge_of is None and self._doubts is None
                part.due_at = part.sent_at + part.lane.pace.limit_s(len(part.routes)) if is_first else math.inf
        return min((part.due_at for part in self._parts.values() if part.due_at is not None), default=math.inf)

    def hedge(self) -> None:
        """What a shard has had for unusually long is asked of others as well; whoever answers first is taken."""
        now = time.monotonic()
        for part in [part for part in self._parts.values() if part.due_at is not None and part.due_at <= now]:
            part.due_at = math.inf
            part.hedges = self._router.on_overdue(self, part, part.routes[part.num_answered :])
            for hedge in part.hedges:
                hedge.hedge_of = part
            self._send(part.hedges)
        if not self.done:
            self._router.watch(self)

    def expire(self) -> None:
        """The layer's deadline has passed; who waits for an expert that nobody holds may go on for a while."""
        if self.done:
            return
        if self._doubts is not None:
            self._give_up_doubts()
            return
        if self.waits_for_experts and not self._parts and time.monotonic() < self.patience_ends_at:
            self._router.renew(self)
            return
        seats = sorted({part.lane.seat for part in self._parts.values()})
        if len(self._waiting):
            experts = np.unique(self.experts[self._waiting])[:4].tolist()
            code, what = Code.NO_REPLICA, f"no usable shard holds experts {experts}"
        else:
            code, what = Code.DEADLINE, f"no answer from {', '.join(seats)} in time"
        last = f"; last refusal: {self._refusal}" if self._refusal else ""
        self._finish(FleetError(code, f"layer {self.layer}: {what}{last}"))

    def _send(self, parts: Iterable[FrameInFlight]) -> None:
        """Each as soon as it is there: the first shard begins while the next part is built. What was sent already comes first."""
        for part in parts:
            if self.done or part.given_up:  # as one before it failed at once
                continue
            self._parts[part.frame_id] = part
            part.sent_at, part.deadline = time.monotonic(), self.deadline
            on_answer = functools.partial(self._on_answer, part)
            if part.sent is not None:
                part.sent.places = self._answers.places
                part.lane.sent(part.sent, on_answer, functools.partial(self._on_noted, part))
            else:
                assert part.frame is not None, "it was neither sent nor can be"
                part.lane.post(part.frame, part.row_ids, on_answer)
        if not self.done:
            self._answers.prepare()  # while the shards have begun

    def _on_answer(self, part: FrameInFlight, answer: Result | FleetError) -> None:
        if self.done or part.frame_id not in self._parts:
            return
        if isinstance(answer, FleetError):
            self._on_failure(part, answer)
            return
        begin, count = part.num_answered, answer.rows.count
        self._answers.add(part.routes[begin : begin + count], answer.rows)
        self._has_answered(part, count)

    def _on_noted(self, part: FrameInFlight, count: int) -> None:
        """A compiled call has written down where the rows of the next ``count`` routes are, whose order and shape it has looked at."""
        if self.done or part.frame_id not in self._parts:
            return
        self._answers.note(part.routes[part.num_answered : part.num_answered + count])
        self._has_answered(part, count)

    def _has_answered(self, part: FrameInFlight, count: int) -> None:
        if part.hedges or part.hedge_of is not None:
            self._prefer(part)
        part.num_answered += count
        self._num_left -= count
        if part.num_answered == len(part.routes):
            self._router.on_answered(part, time.monotonic())
            self._answered.append(self._parts.pop(part.frame_id))
        if not self._num_left:
            self._review()

    def _prefer(self, part: FrameInFlight) -> None:
        """Of a part and its hedges those are given up that did not answer first."""
        slow, part.hedge_of = part.hedge_of, None
        if slow is not None:
            self._release(slow)
        self._drop_hedges(part)

    def _release(self, slow: FrameInFlight) -> None:
        """Its hedges take its place for all that it has not answered."""
        for hedge in slow.hedges:
            hedge.hedge_of = None
        slow.hedges = []
        if self._parts.pop(slow.frame_id, None) is not None:
            now = time.monotonic()
            slow.lane.observe(slow.num_experts, now - slow.sent_at, now)  # so long at least
            if slow.num_answered:
                slow.lane.ignore(slow.frame_id)
                self._answered.append(slow)
            else:
                _drop([slow])

    def _drop_hedges(self, part: FrameInFlight) -> None:
        hedges, part.hedges = part.hedges, []
        for hedge in hedges:
            hedge.hedge_of, hedge.given_up = None, True
        _drop([hedge for hedge in hedges if self._parts.pop(hedge.frame_id, None) is not None])

    def _on_failure(self, part: FrameInFlight, error: FleetError) -> None:
        self._answered.append(self._parts.pop(part.frame_id))  # its first pieces may have come
        if self._doubts is not None:
            self._on_failed_second(part, error)
            return
        if part.hedge_of is not None:
            self._drop_hedges(part.hedge_of)  # the slow one has them all yet
            return
        if error.code is Code.EXPIRED and part.deadline < self.deadline:
            self._ask_anew(part)
            return
        if part.hedges and error.code in _RETRYABLE:
            self.failed_seats.add(part.lane.seat)
            self._release(part)
            return
        if error.code not in _RETRYABLE:
            self._finish(error)
            return
        self.failed_seats.add(part.lane.seat)
        self._refusal = f"{error.code.name} {error}"
        self._router.on_failed_part(self, part.lane.seat, error)
        self._reassign(part.routes[part.num_answered :])

    def _ask_anew(self, part: FrameInFlight) -> None:
        """The shard was told of less time than the layer has by now; its hedges, if there are any, were asked later."""
        if part.hedges:
            self._release(part)
        else:
            self._reassign(part.routes[part.num_answered :])

    def _reassign(self, routes: Routes) -> None:
        self.start(*self._router.build_parts(self, routes))

    def _park(self, routes: Routes) -> None:
        self._waiting = np.concatenate((self._waiting, routes))
        self.waits_for_experts = self._router.are_lost(self, self._waiting)
        self._router.park(self, self._pause_s)
        self._pause_s = min(_MAX_PAUSE_S, 2 * self._pause_s)

    def _review(self) -> None:
        """Every route is answered, some of them perhaps a second time."""
        self._total, is_finite = self._answers.combined()
        if self._doubts is None and not is_finite:
            self._doubt()
        else:
            self._conclude()

    def _doubt(self) -> None:
        """Asks others for what is not finite although the row is that was sent."""
        routes = suspect_routes(self.rows.tensor, self._answers.pieces, self._total, self.top_k)
        asked_of = ((part.lane, part.routes[: part.num_answered]) for part in self._answered)
        self._doubts = [(lane, mine) for lane, answered in asked_of if len(mine := np.intersect1d(answered, routes))]
        self._num_first_pieces = len(self._answers.pieces)
        parts: list[FrameInFlight] = []
        for lane, mine in self._doubts:
            parts += self._router.build_second_parts(self, mine, {lane.seat})[0]
        self._num_left = sum(len(part.routes) for part in parts)
        self._send(parts)
        if not parts:
            self._conclude()

    def _on_failed_second(self, part: FrameInFlight, error: FleetError) -> None:
        """Yet another one is asked, if there is one; nobody is waited for."""
        assert self._doubts is not None
        unanswered = part.routes[part.num_answered :]
        self.failed_seats.add(part.lane.seat)
        self._router.on_failed_part(self, part.lane.seat, error)
        doubted = {lane.seat for lane, routes in self._doubts if np.isin(unanswered, routes).any()}
        parts, orphans = self._router.build_second_parts(self, unanswered, doubted)
        self._num_left -= len(orphans)
        self._send(parts)
        if not self._num_left and not self.done:
            self._review()

    def _give_up_doubts(self) -> None:
        """The layer's deadline has passed: what was not confirmed or refuted by now stays as it is."""
        unanswered = list(self._parts.values())
        self._parts.clear()
        self._answered += unanswered  # their first pieces may have come
        self._review()

    def _conclude(self) -> None:
        if self._doubts is not None:
            seconds = self._answers.pieces[self._num_first_pieces :]
            if wrong := find_faulty(self._doubts, seconds):
                self._router.on_wrong(self, wrong)
            self.faults = faults_of(self.layer, self.rows.tensor, self.experts, self._total, self._doubts, seconds)
            self._total[list(self.faults)] = 0.0
        self._finish(None)

    def _finish(self, error: FleetError | None) -> None:
        self.error = error
        self.done = True
        if self._parts:
            unanswered = list(self._parts.values())
            self._parts.clear()
            _drop(unanswered)
        self._router.forget(self)
        if self._when_done is not None:
            self._when_done()


def _drop(parts: list[FrameInFlight]) -> None:
    while parts:
        part = parts.pop()
        part.lane.drop(part.frame_id)
