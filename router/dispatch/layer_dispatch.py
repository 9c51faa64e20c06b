"""One layer's dispatch: frames sent to shards, answers gathered, retries, hedges, the recheck, and the deadline.

Knows nothing of lanes' insides and of attention, and belongs to the engine's thread. A dispatch ends in exactly one of two ways: every
route answered, or one FleetError; never with a row missing. 1. It sends frames. 2. Each event of a frame or of the layer is a row
of ``transitions.py``, which says what follows. 3. An answer that is not finite is asked of a second replica, once
(``nonfinite_check.py``); rows that stay so are ``faults``. 4. The engine awaits the dispatch, takes ``combined``, and closes it, as the
answers lie in memory that is used again.
"""

import logging
import math
import time
from collections.abc import Callable, Collection, Generator, Iterable
from typing import Protocol

import numpy as np
import torch

from ...proto.codec import Result
from ...proto.errors import Code, FleetError
from ...proto.rows import Rows
from ..lanes.frame_in_flight import FrameInFlight, FrameLane, FrameState
from .combine import Answers
from .counters import Counters, Timing
from .deadline_timers import DeadlineTimers
from .nonfinite_check import Suspect, faults_of, find_faulty, suspect_routes
from .routing_table import RoutingTable
from .shard_requests import Routes
from .transitions import ON_FRAME, ON_LAYER, FrameAction, FrameEvent, LayerAction, LayerEvent, Phase, event_of

logger = logging.getLogger(__name__)
_FIRST_PAUSE_S = 0.02
_MAX_PAUSE_S = 0.5
_NO_ROUTES: Routes = np.empty(0, dtype=np.int64)
_NOTHING = torch.empty(0)


class Sender(Protocol):
    """The router that a dispatch belongs to."""

    counters: Counters
    timings: list[Timing]
    deadlines: "DeadlineTimers[LayerDispatch]"
    hedge_timers: "DeadlineTimers[LayerDispatch]"
    layer_deadline_s: float

    @property
    def routing_table(self) -> RoutingTable: ...

    def build_frames(
        self, dispatch: "LayerDispatch", routes: Routes, avoid: Collection[str], *, is_recheck: bool = False
    ) -> tuple[Iterable[FrameInFlight], Routes]:
        """Frames for ``routes`` to shards but those of ``avoid``, and the routes that no shard can answer now."""
        ...

    def quarantine(self, dispatch: "LayerDispatch", lanes: list[FrameLane]) -> None: ...

    def park(self, dispatch: "LayerDispatch", pause_s: float) -> None:
        """Calls ``retry_waiting`` when the routing table changes, and after ``pause_s``."""
        ...

    def forget(self, dispatch: "LayerDispatch") -> None: ...


class LayerDispatch:
    """An awaitable for one layer of one micro-batch; it owns its frames."""

    def __init__(
        self,
        router: Sender,
        layer: int,
        x: torch.Tensor,
        topk_ids: torch.Tensor,
        topk_weights: torch.Tensor,
        priority: int,
        patience_s: float,
    ) -> None:
        """``patience_s``: how much longer than the layer's deadline it waits for experts that no shard holds."""
        self.layer = layer
        self.priority = priority
        self.rows = Rows.of(x)  # [T, H]
        self.topk_ids = topk_ids  # [T, K] int64; route t·K + k
        self.top_k = topk_ids.shape[1]
        self.failed_seats: set[str] = set()
        self.error: FleetError | None = None
        self.faults: dict[int, FleetError] = {}  # rows whose output is not finite, and is zero in ``combined``
        self.deadline = time.monotonic() + router.layer_deadline_s
        self.waits_for_experts = False  # that no shard holds
        self.phase = Phase.ASKING
        self._patience_ends_at = self.deadline + patience_s
        self._router = router
        self._frames: dict[int, FrameInFlight] = {}  # whose answers are to come
        self._kept: list[FrameInFlight] = []  # over, but their answers are still needed
        self._waiting = _NO_ROUTES
        self._pause_s = _FIRST_PAUSE_S
        self._refusal = ""
        self._answers = Answers(topk_weights, self.rows.width, self.rows.dtype)
        self._total = _NOTHING
        self._suspects: list[Suspect[FrameLane]] | None = None  # None until the recheck
        self._num_first_pieces = 0
        self._num_left = topk_ids.numel()
        self._when_done: Callable[[], None] | None = None

    def __await__(self) -> Generator["LayerDispatch", None, None]:
        if not self.done:
            yield self
        if self.error is not None:
            raise self.error

    @property
    def done(self) -> bool:
        return self.phase is Phase.DONE

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
            error = FleetError(Code.CANCELLED, f"layer {self.layer}: nobody waits for it any more")
            self._follow(LayerEvent.CLOSED, error)
        self._answers.forget()
        _drop(self._kept)

    def start(self, frames: Iterable[FrameInFlight], unroutable: Routes) -> None:
        self._send(frames)
        if len(unroutable):
            self._park(unroutable)
        if not self.done:
            self._watch()

    def retry_waiting(self) -> None:
        """The routing table has changed, or a refusal may have passed: shards that failed before may answer by now."""
        waiting, self._waiting = self._waiting, _NO_ROUTES
        self.failed_seats.clear()
        if not len(waiting) or self.done:
            return
        if self.waits_for_experts and not self._have_no_holder(waiting):
            self.waits_for_experts = False
            self._extend()  # the shard that holds them now has as much time as any
        self._reassign(waiting)

    def hedge(self) -> None:
        """Asks replicas as well for what a shard has had for unusually long; the first answer is taken."""
        now = time.monotonic()
        for frame in [frame for frame in self._frames.values() if frame.due_at is not None and frame.due_at <= now]:
            frame.due_at = math.inf
            frame.hedges = self._hedges_of(frame)
            if frame.hedges:
                self._change(frame, FrameEvent.OVERDUE)
                self._send(frame.hedges)
        if not self.done:
            self._watch()

    def expire(self) -> None:
        """The layer's deadline has passed."""
        if self.done:
            return
        is_patient = (
            self.phase is Phase.ASKING
            and self.waits_for_experts
            and not self._frames
            and time.monotonic() < self._patience_ends_at
        )
        self._follow(LayerEvent.DEADLINE_WITH_PATIENCE if is_patient else LayerEvent.DEADLINE)

    # What lanes tell.

    def on_answer(self, frame: FrameInFlight, answer: Result | FleetError) -> None:
        if frame.state.is_over or self.done:
            return
        if isinstance(answer, FleetError):
            self._kept.append(self._frames.pop(frame.frame_id))  # its first answers may have come
            self._change(frame, event_of(frame, answer, self.deadline), answer)
            return
        count = answer.rows.count
        self._answers.add(frame.unanswered[:count], answer.rows)
        self._count(frame, count)

    def on_rows_written(self, frame: FrameInFlight, count: int) -> None:
        """A compiled call has checked the order and shape of the next ``count`` routes' rows, and written down where they are."""
        if frame.state.is_over or self.done:
            return
        self._answers.note(frame.unanswered[:count])
        self._count(frame, count)

    def _count(self, frame: FrameInFlight, count: int) -> None:
        frame.num_taken += count
        self._num_left -= count
        if frame.num_taken < frame.num_routes:
            self._change(frame, FrameEvent.ANSWER)
        else:
            self._change(frame, FrameEvent.LAST_ANSWER)
            now = time.monotonic()
            self._router.timings.append((frame.lane, frame.num_routes, frame.num_experts, now - frame.sent_at, now))
            self._kept.append(self._frames.pop(frame.frame_id))
        if not self._num_left:
            self._review()

    # Rows of the frames' table.

    def _change(self, frame: FrameInFlight, event: FrameEvent, error: FleetError | None = None) -> None:
        row = ON_FRAME.get((frame.state, event))
        if row is None:
            raise RuntimeError(f"a frame is {frame.state.name} and {event.name} came: no row says what follows")
        frame.state, action = row
        if action > FrameAction.TAKE:
            _ACTIONS[action](self, frame, error)

    def _outrun_hedges(self, slow: FrameInFlight, error: FleetError | None) -> None:
        self._release_hedges(slow, FrameEvent.OUTRUN)

    def _replace_slow(self, hedge: FrameInFlight, error: FleetError | None) -> None:
        slow = hedge.hedge_of
        assert slow is not None
        slow.hedges.remove(hedge)
        hedge.hedge_of = None
        self._release_hedges(slow, FrameEvent.PROMOTED)
        self._change(slow, FrameEvent.REPLACED)

    def _ask_replica(self, frame: FrameInFlight, error: FleetError | None) -> None:
        assert error is not None
        self.failed_seats.add(frame.lane.seat)
        self._refusal = f"{error.code.name} {error}"
        self._log_failure(frame, error)
        self._reassign(frame.unanswered)

    def _ask_again(self, frame: FrameInFlight, error: FleetError | None) -> None:
        self._reassign(frame.unanswered)

    def _promote_hedges(self, slow: FrameInFlight, error: FleetError | None) -> None:
        self._release_hedges(slow, FrameEvent.PROMOTED)

    def _avoid_and_promote(self, slow: FrameInFlight, error: FleetError | None) -> None:
        self.failed_seats.add(slow.lane.seat)
        self._release_hedges(slow, FrameEvent.PROMOTED)

    def _drop_hedges_of_slow(self, hedge: FrameInFlight, error: FleetError | None) -> None:
        slow = hedge.hedge_of
        assert slow is not None
        slow.hedges.remove(hedge)
        hedge.hedge_of = None
        self._release_hedges(slow, FrameEvent.HEDGES_LOST)
        self._change(slow, FrameEvent.HEDGES_LOST)

    def _recheck_elsewhere(self, frame: FrameInFlight, error: FleetError | None) -> None:
        """Asks yet another replica, if there is one; the recheck waits for none to come."""
        assert error is not None
        assert self._suspects is not None
        unanswered = frame.unanswered
        self.failed_seats.add(frame.lane.seat)
        self._log_failure(frame, error)
        doubted = {lane.seat for lane, routes in self._suspects if np.isin(unanswered, routes).any()}
        frames, unroutable = self._recheck_frames(unanswered, doubted)
        self._num_left -= len(unroutable)
        self._send(frames)
        if not self._num_left and not self.done:
            self._review()

    def _end(self, frame: FrameInFlight, error: FleetError | None) -> None:
        self._follow(LayerEvent.ERROR, error)

    def _drop(self, frame: FrameInFlight, error: FleetError | None) -> None:
        if self._frames.pop(frame.frame_id, None) is not None:
            frame.lane.drop(frame)

    def _release(self, slow: FrameInFlight, error: FleetError | None) -> None:
        """Its shard took so long at least; what it has answered counts."""
        now = time.monotonic()
        slow.lane.observe(slow.num_experts, now - slow.sent_at, now)
        del self._frames[slow.frame_id]
        if slow.num_taken:
            slow.lane.ignore(slow)
            self._kept.append(slow)
        else:
            slow.lane.drop(slow)

    def _release_hedges(self, slow: FrameInFlight, event: FrameEvent) -> None:
        hedges, slow.hedges = slow.hedges, []
        for hedge in hedges:
            hedge.hedge_of = None
            self._change(hedge, event)

    # Rows of the layer's table.

    def _follow(self, event: LayerEvent, error: FleetError | None = None) -> None:
        row = ON_LAYER.get((self.phase, event))
        if row is None:
            raise RuntimeError(f"the layer is {self.phase.name} and {event.name} came: no row says what follows")
        self.phase, action = row
        match action:
            case LayerAction.CONCLUDE:
                self._conclude()
            case LayerAction.RECHECK:
                self._recheck()
            case LayerAction.EXTEND:
                self._extend()
            case LayerAction.FAIL_LATE:
                self._finish(self._late())
            case LayerAction.CONCLUDE_UNCONFIRMED:
                self._kept += self._frames.values()  # their first answers may have come
                self._frames.clear()
                self._total, _ = self._answers.combined()
                self._conclude()
            case LayerAction.FAIL:
                self._finish(error)

    def _review(self) -> None:
        """Every route is answered, some of them perhaps a second time."""
        self._total, is_finite = self._answers.combined()
        self._follow(LayerEvent.FINITE if is_finite else LayerEvent.NOT_FINITE)

    def _recheck(self) -> None:
        """Asks second replicas for answers that are not finite although the rows that were sent are."""
        routes = suspect_routes(self.rows.tensor, self._answers.pieces, self._total, self.top_k)
        answered = ((frame.lane, frame.routes[: frame.num_taken]) for frame in self._kept)
        self._suspects = [(lane, mine) for lane, taken in answered if len(mine := np.intersect1d(taken, routes))]
        self._num_first_pieces = len(self._answers.pieces)
        frames: list[FrameInFlight] = []
        for lane, mine in self._suspects:
            frames += self._recheck_frames(mine, {lane.seat})[0]
        self._num_left = sum(frame.num_routes for frame in frames)
        self._send(frames)
        if not frames:
            self._follow(LayerEvent.NOT_FINITE)

    def _conclude(self) -> None:
        if self._suspects is not None:
            seconds = self._answers.pieces[self._num_first_pieces :]
            if faulty := find_faulty(self._suspects, seconds):
                self._router.quarantine(self, faulty)
            self.faults = faults_of(self.layer, self.rows.tensor, self.experts, self._total, self._suspects, seconds)
            self._total[list(self.faults)] = 0.0
        self._finish(None)

    def _extend(self) -> None:
        """The layer's deadline counts from now."""
        left_s = min(self._router.layer_deadline_s, self._patience_ends_at - time.monotonic())
        self.deadline = time.monotonic() + left_s
        self._router.deadlines.end_at(self, self.deadline)

    def _late(self) -> FleetError:
        if len(self._waiting):
            experts = np.unique(self.experts[self._waiting])[:4].tolist()
            code, what = Code.NO_REPLICA, f"no usable shard holds experts {experts}"
        else:
            seats = sorted({frame.lane.seat for frame in self._frames.values()})
            code, what = Code.DEADLINE, f"no answer from {', '.join(seats)} in time"
        last = f"; last refusal: {self._refusal}" if self._refusal else ""
        return FleetError(code, f"layer {self.layer}: {what}{last}")

    def _finish(self, error: FleetError | None) -> None:
        self.error = error
        unanswered = list(self._frames.values())
        self._frames.clear()
        _drop(unanswered)
        self._router.forget(self)
        if self._when_done is not None:
            self._when_done()

    # Sending.

    def _send(self, frames: Iterable[FrameInFlight]) -> None:
        """Each as soon as it is there: the first shard begins while the next frame is built. Frames that were sent already come first."""
        for frame in frames:
            if self.done or frame.state.is_over:  # as one before it failed at once
                continue
            self._frames[frame.frame_id] = frame
            frame.sent_at, frame.deadline = time.monotonic(), self.deadline
            if frame.wire is None:
                frame.places = self._answers.places
                frame.lane.sent(frame)
            else:
                frame.lane.post(frame)
        if not self.done:
            self._answers.prepare()  # while the shards have begun

    def _reassign(self, routes: Routes) -> None:
        self.start(*self._router.build_frames(self, routes, self.failed_seats))

    def _park(self, routes: Routes) -> None:
        self._waiting = np.concatenate((self._waiting, routes))
        self.waits_for_experts = self._have_no_holder(self._waiting)
        self._router.park(self, self._pause_s)
        self._pause_s = min(_MAX_PAUSE_S, 2 * self._pause_s)

    def _have_no_holder(self, routes: Routes) -> bool:
        """Whether no usable shard holds some expert of ``routes``."""
        return self._router.routing_table.lacks(self.layer, torch.from_numpy(self.experts[routes]))

    def _watch(self) -> None:
        """Has ``hedge`` called when the next frame is overdue, if there are replicas."""
        if self._router.routing_table.has_replicas and math.isfinite(due_at := self._next_due()):
            self._router.hedge_timers.end_at(self, due_at)

    def _next_due(self) -> float:
        for frame in self._frames.values():
            if frame.due_at is None:
                is_alone = frame.state is FrameState.SENT
                frame.due_at = frame.sent_at + frame.lane.pace.limit_s(frame.num_routes) if is_alone else math.inf
        return min((frame.due_at for frame in self._frames.values() if frame.due_at is not None), default=math.inf)

    def _hedges_of(self, slow: FrameInFlight) -> list[FrameInFlight]:
        """Frames to replicas for all that ``slow`` has not answered; none where some of it has none, or too many were asked."""
        if not self._router.counters.may_hedge:
            return []
        slow.lane.suspect()
        seat = slow.lane.seat
        built, unroutable = self._router.build_frames(self, slow.unanswered, {*self.failed_seats, seat})
        if len(unroutable):
            return []
        self._router.counters.hedged_frames += 1
        logger.info("layer %d: %s takes unusually long, asking replicas as well", self.layer, seat)
        hedges = list(built)
        for hedge in hedges:
            hedge.state, hedge.hedge_of = FrameState.HEDGE, slow
        return hedges

    def _recheck_frames(self, routes: Routes, doubted: set[str]) -> tuple[list[FrameInFlight], Routes]:
        built, unroutable = self._router.build_frames(self, routes, {*self.failed_seats, *doubted}, is_recheck=True)
        frames = list(built)
        for frame in frames:
            frame.state = FrameState.RECHECK
        return frames, unroutable

    def _log_failure(self, frame: FrameInFlight, error: FleetError) -> None:
        self._router.counters.retried_frames += 1
        logger.warning("layer %d: %s failed, asking elsewhere: %s", self.layer, frame.lane.seat, error)


_ACTIONS = {
    FrameAction.TAKE_AND_DROP_HEDGES: LayerDispatch._outrun_hedges,
    FrameAction.TAKE_AND_REPLACE_SLOW: LayerDispatch._replace_slow,
    FrameAction.ASK_REPLICA: LayerDispatch._ask_replica,
    FrameAction.ASK_AGAIN: LayerDispatch._ask_again,
    FrameAction.PROMOTE_HEDGES: LayerDispatch._promote_hedges,
    FrameAction.AVOID_AND_PROMOTE: LayerDispatch._avoid_and_promote,
    FrameAction.DROP_HEDGES_OF_SLOW: LayerDispatch._drop_hedges_of_slow,
    FrameAction.RECHECK_ELSEWHERE: LayerDispatch._recheck_elsewhere,
    FrameAction.END: LayerDispatch._end,
    FrameAction.DROP: LayerDispatch._drop,
    FrameAction.RELEASE: LayerDispatch._release,
}


def _drop(frames: list[FrameInFlight]) -> None:
    while frames:
        frame = frames.pop()
        frame.lane.drop(frame)
