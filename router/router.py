"""The router of one attention worker: epochs and lanes in, dispatches out.

Knows nothing of attention and HTTP. Everything belongs to the reactor's thread, the engine's; what other threads may call says
so. The plan is replaced as a whole whenever an epoch comes or a lane goes up or down; a lane that is down is a local,
passing suspicion and changes nobody's membership.
"""

import logging
import math
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..kernels import native_lanes
from ..membership.epoch import NO_EPOCH, Epoch, EpochId
from ..proto.codec import Dispatch as Frame
from ..proto.codec import Hello, dispatch_parts, short_fingerprint
from ..proto.errors import FleetError
from ..proto.frame_prefix import Buffer
from ..proto.rows import Rows
from ..transport.io_thread import IoThread
from ..transport.pair_group import ALL_ON_THE_LANE, PairSettings
from ..transport.reactor import Reactor
from .dispatch.deadline_timers import DeadlineTimers
from .dispatch.fanout import FanoutResult, LayerFanout
from .dispatch.frame_in_flight import FrameInFlight
from .dispatch.layer_dispatch import Dispatch
from .dispatch.routing_table import NO_HOLDER, RoutingTable
from .dispatch.shard_requests import Routes, ShardRequest, partition_routes
from .lanes.connection import Sent
from .lanes.lane import Lane
from .placement.expert_loads import ExpertLoads

logger = logging.getLogger(__name__)
# Parts asked a second time because the first shard is slow: at most this share of all, but for a few.
_HEDGED_SHARE = 0.05
_HEDGES_AT_ONCE = 8


@dataclass(slots=True)
class Counters:
    """What the router has done since it started."""

    dispatches: int = 0
    routes: int = 0
    frames: int = 0
    retried_parts: int = 0
    hedged_parts: int = 0
    failed_dispatches: int = 0
    faulty_rows: int = 0


class Router:
    """Dispatches hidden rows to the expert shards of the current epoch."""

    def __init__(
        self,
        io: IoThread,
        reactor: Reactor,
        hello: Hello,
        layer_deadline_s: float,
        lost_expert_wait_s: float = 0.0,
        *,
        local_lanes: bool = True,
        tcp_lanes: bool = True,
        pair: PairSettings = ALL_ON_THE_LANE,
        loads: ExpertLoads | None = None,
    ) -> None:
        """A layer's answers have ``layer_deadline_s``; experts that nobody holds are waited for ``lost_expert_wait_s`` besides."""
        self.counters = Counters()
        self.loads = loads  # None where nobody wants to know
        # One snapshot, replaced as a whole: a plan and the lane of each of its members.
        self._snapshot: tuple[RoutingTable, tuple[Lane, ...]] = (RoutingTable(NO_EPOCH, (), ()), ())
        self._asking: LayerFanout | None = None  # of that plan
        self._calls = native_lanes.calls()
        self._io, self._reactor = io, reactor
        self._hello = hello
        self._fingerprint = short_fingerprint(hello.fingerprint)
        self._layer_deadline_s = layer_deadline_s
        self._lost_expert_wait_s = lost_expert_wait_s
        self._local_lanes, self._tcp_lanes = local_lanes, tcp_lanes
        self._pair = pair
        self._epoch: Epoch | None = None
        self._lanes: dict[tuple[str, str], Lane] = {}
        self._num_frames = 0  # whose ids were given
        self._answers: list[tuple[Lane, int, int, float, float]] = []  # routes, experts, seconds, and when
        self._parked: set[Dispatch] = set()
        self._deadlines: DeadlineTimers[Dispatch] = DeadlineTimers(reactor, Dispatch.expire)
        self._hedges: DeadlineTimers[Dispatch] = DeadlineTimers(reactor, Dispatch.hedge)
        self._ready = threading.Event()

    def dispatch(
        self, layer: int, x: torch.Tensor, topk_ids: torch.Tensor, topk_weights: torch.Tensor, priority: int = 0
    ) -> Dispatch:
        """Sends contiguous rows ``x`` [T, H] to the experts ``topk_ids`` [T, K]; the result is awaited, ``combined``, then closed."""
        asked = self._ask(layer, x, topk_ids, priority)
        dispatch = Dispatch(self, layer, x, topk_ids, topk_weights, priority)
        dispatch.deadline = time.monotonic() + self._layer_deadline_s
        dispatch.patience_ends_at = dispatch.deadline + self._lost_expert_wait_s
        if asked is None:
            dispatch.start(*self.build_parts(dispatch, None))
        else:
            dispatch.start(self._parts_asked(dispatch, asked), asked.orphans)
        # What follows is done while the shards have begun.
        if not dispatch.done:
            self._deadlines.end_at(dispatch, dispatch.deadline)
        self.counters.dispatches += 1
        self.counters.routes += topk_ids.numel()
        if self.loads is not None:
            self.loads.count(layer, dispatch.experts)
        self._learn_paces()
        return dispatch

    def wait_usable(self, timeout_s: float) -> bool:
        """Whether, within ``timeout_s``, every expert of a complete epoch can be reached over a lane; not for the owner."""
        return self._ready.wait(timeout_s)

    @property
    def usable(self) -> bool:
        """For any thread."""
        return self._ready.is_set()

    @property
    def plan(self) -> RoutingTable:
        """For any thread."""
        return self._snapshot[0]

    @property
    def quarantined(self) -> list[str]:
        """Addresses of shards that are asked only for what nobody else holds, as a replica refuted an answer; for any thread."""
        return [lane.address for lane in list(self._lanes.values()) if lane.quarantined]

    def seconds_per_expert(self) -> dict[str, float]:
        """Of every shard that was asked of late, by address; for any thread."""
        now = time.monotonic()
        paces = {lane.address: lane.expert_pace.seconds(now) for lane in list(self._lanes.values())}
        return {address: seconds for address, seconds in paces.items() if seconds is not None}

    @property
    def num_waiting(self) -> int:
        """Dispatches that wait for an expert which nobody usable holds; for any thread."""
        return sum(dispatch.waits_for_experts for dispatch in list(self._parked))

    def renew(self, dispatch: Dispatch) -> None:
        """The layer's deadline counts from now."""
        left_s = min(self._layer_deadline_s, dispatch.patience_ends_at - time.monotonic())
        dispatch.deadline = time.monotonic() + left_s
        self._deadlines.end_at(dispatch, dispatch.deadline)

    def _ask(self, layer: int, x: torch.Tensor, topk_ids: torch.Tensor, priority: int) -> FanoutResult | None:
        """Who can be asked by a compiled call has been asked then."""
        if self._asking is None:
            return None
        asked = self._asking(layer, x, topk_ids, priority, self._num_frames + 1)
        if asked is not None:
            self._num_frames += asked.num_asked
        return asked

    def _parts_asked(self, dispatch: Dispatch, asked: FanoutResult) -> Iterator[FrameInFlight]:
        """Those that were sent first."""
        plan, lanes = self._snapshot
        num_sent = 0
        for share in asked.sent():
            num_sent += 1
            lane, num_routes = lanes[share.owner], len(share.routes)
            sent = Sent(share.frame_id, dispatch.rows, share.num_rows, num_routes, share.routes_at)
            if share.num_unsent:
                sent.unsent = (
                    self._sent_frame(dispatch, plan.epoch, lane, asked.shares()[share.owner], sent),
                    share.num_unsent,
                )
            yield FrameInFlight(lane, share.frame_id, share.routes, share.num_experts, sent=sent)
        self.counters.frames += num_sent
        if num_sent < asked.num_asked:
            yield from self._parts(dispatch, plan.epoch, lanes, asked.unsent())

    def _sent_frame(
        self, dispatch: Dispatch, epoch: EpochId, lane: Lane, share: ShardRequest, sent: Sent
    ) -> tuple[Buffer, ...]:
        """The parts of a frame as the compiled call has sent them, in memory that stays."""
        frame = self._frame(dispatch, epoch, share, sent.frame_id, self._layer_deadline_s)
        rows = Rows.of(dispatch.rows.tensor[torch.from_numpy(share.rows)])
        return dispatch_parts(frame.with_rows(rows), lane.version)

    def build_parts(
        self, dispatch: Dispatch, routes: Routes | None, slow: str = ""
    ) -> tuple[Iterator[FrameInFlight], Routes]:
        """Frames for ``routes``, or all, under the current plan, and the routes that nobody (but ``slow``) can answer now."""
        excluded = {*dispatch.failed_seats, slow} if slow else dispatch.failed_seats
        experts = dispatch.topk_ids if routes is None else torch.from_numpy(dispatch.experts[routes])
        return self._parts_for(dispatch, self.plan.assign(dispatch.layer, experts, excluded), experts, routes)

    def _parts_for(
        self, dispatch: Dispatch, owners: torch.Tensor, experts: torch.Tensor, routes: Routes | None
    ) -> tuple[Iterator[FrameInFlight], Routes]:
        plan, lanes = self._snapshot
        shares, orphans = partition_routes(owners, len(lanes), experts, routes, dispatch.top_k, dispatch.rows.count)
        if len(shares) > 1:  # whoever will take longest is asked first
            shares.sort(key=lambda share: lanes[share.owner].expert_pace.expected_s(share.num_experts), reverse=True)
        return self._parts(dispatch, plan.epoch, lanes, shares), orphans

    def _parts(
        self, dispatch: Dispatch, epoch: EpochId, lanes: tuple[Lane, ...], shares: list[ShardRequest]
    ) -> Iterator[FrameInFlight]:
        for share in shares:
            lane = lanes[share.owner]
            for piece in share.cut(lane.max_rows(dispatch.rows.row_bytes, dispatch.top_k)):
                yield self._part(dispatch, epoch, lane, piece)

    def build_second_parts(
        self, dispatch: Dispatch, routes: Routes, doubted: set[str]
    ) -> tuple[Iterator[FrameInFlight], Routes]:
        """As ``build_parts``, for others than those ``doubted`` and those that have failed."""
        experts = torch.from_numpy(dispatch.experts[routes])
        owners = self.plan.assign_others(dispatch.layer, experts, {*dispatch.failed_seats, *doubted})
        return self._parts_for(dispatch, owners, experts, routes)

    def watch(self, dispatch: Dispatch) -> None:
        """``dispatch.hedge`` is called when its next part is overdue, if there is anybody else to ask."""
        if self.plan.has_replicas and math.isfinite(due_at := dispatch.next_due()):
            self._hedges.end_at(dispatch, due_at)

    def on_overdue(self, dispatch: Dispatch, part: FrameInFlight, routes: Routes) -> list[FrameInFlight]:
        """The same ``routes`` for others, if all of them can be asked of somebody else and not too many were already."""
        counters = self.counters
        if counters.hedged_parts + 1 > _HEDGES_AT_ONCE + _HEDGED_SHARE * counters.frames:
            return []
        part.lane.suspect()
        parts, orphans = self.build_parts(dispatch, routes, part.lane.seat)
        if len(orphans):
            return []
        counters.hedged_parts += 1
        logger.info("layer %d: %s takes unusually long, asking others as well", dispatch.layer, part.lane.seat)
        return list(parts)

    def on_answered(self, part: FrameInFlight, now: float) -> None:
        """What is learnt of it waits for the next dispatch: somebody waits for the answer."""
        self._answers.append((part.lane, len(part.routes), part.num_experts, now - part.sent_at, now))

    def _learn_paces(self) -> None:
        answers, self._answers = self._answers, []
        is_hedging = self.plan.has_replicas
        for lane, num_routes, num_experts, seconds, at in answers:
            if is_hedging:
                lane.pace.observe(num_routes, seconds)
            lane.observe(num_experts, seconds, at)

    def set_epoch(self, epoch: Epoch) -> None:
        """From any thread: lanes to members that stay are kept; those to members that left are closed."""
        self._reactor.post(self._set_epoch, epoch)

    def _set_epoch(self, epoch: Epoch) -> None:
        self._epoch = epoch
        wanted = {(member.seat, member.address) for member in epoch.experts}
        for key in [key for key in self._lanes if key not in wanted]:
            self._lanes.pop(key).close()
        for seat, address in wanted - self._lanes.keys():
            self._lanes[seat, address] = Lane(
                seat,
                address,
                self._hello,
                self._io,
                self._reactor,
                self._replan,
                local=self._local_lanes,
                tcp=self._tcp_lanes,
                pair=self._pair,
            )
        logger.info("epoch %s: %d expert shards, complete: %s", epoch.id, len(epoch.experts), epoch.complete)
        self._replan()

    def close(self) -> None:
        """Also from another thread, when the owner has ended."""
        self._epoch = None
        lanes, self._lanes = list(self._lanes.values()), {}
        for lane in lanes:
            lane.close()

    def on_failed_part(self, dispatch: Dispatch, seat: str, error: FleetError) -> None:
        self.counters.retried_parts += 1
        logger.warning("layer %d: %s failed, asking elsewhere: %s", dispatch.layer, seat, error)

    def are_lost(self, dispatch: Dispatch, routes: Routes) -> bool:
        """Whether nobody usable holds some expert of ``routes``."""
        experts = torch.from_numpy(dispatch.experts[routes])
        return bool((self.plan.assign(dispatch.layer, experts)[experts] == NO_HOLDER).any())

    def on_wrong(self, dispatch: Dispatch, lanes: list[Lane]) -> None:
        """They gave answers that are not finite, where a second replica gave finite ones."""
        for lane in lanes:
            lane.quarantined = True
            logger.error(
                "%s at %s is quarantined: an answer of layer %d is not finite, a replica's is",
                lane.seat,
                lane.address,
                dispatch.layer,
            )
        self._replan()

    def park(self, dispatch: Dispatch, pause_s: float) -> None:
        """Whoever waits is asked again when the plan changes, and after ``pause_s``: a refusal may have passed."""
        if dispatch not in self._parked:
            self._parked.add(dispatch)
            self._reactor.call_later(pause_s, lambda: self._unpark(dispatch))

    def forget(self, dispatch: Dispatch) -> None:
        self._parked.discard(dispatch)
        self._deadlines.forget(dispatch)
        self._hedges.forget(dispatch)
        if dispatch.error is not None:
            self.counters.failed_dispatches += 1
        self.counters.faulty_rows += len(dispatch.faults)

    def _part(self, dispatch: Dispatch, epoch: EpochId, lane: Lane, share: ShardRequest) -> FrameInFlight:
        self.counters.frames += 1
        self._num_frames += 1
        all_rows = len(share.rows) == dispatch.rows.count
        row_ids = None if all_rows else torch.from_numpy(share.rows)
        frame = self._frame(dispatch, epoch, share, self._num_frames, dispatch.deadline - time.monotonic())
        return FrameInFlight(lane, frame.frame_id, share.routes, share.num_experts, frame, row_ids)

    def _frame(self, dispatch: Dispatch, epoch: EpochId, share: ShardRequest, frame_id: int, left_s: float) -> Frame:
        return Frame(
            frame_id,
            self._fingerprint,
            (epoch.incarnation, epoch.counter),
            dispatch.layer,
            dispatch.priority,
            int(left_s * 1e6),
            dispatch.rows,
            share.places,
            share.experts,
        )

    def _replan(self) -> None:
        epoch = self._epoch
        if epoch is None:
            return
        up = {lane.seat for lane in self._lanes.values() if lane.up}
        suspected = {lane.seat for lane in self._lanes.values() if lane.suspected}
        quarantined = {lane.seat for lane in self._lanes.values() if lane.quarantined}
        plan = RoutingTable(epoch.id, epoch.experts, up, self._snapshot[0], suspected, quarantined)
        lanes = tuple(self._lanes[member.seat, member.address] for member in epoch.experts)
        self._snapshot = (plan, lanes)
        if self._calls is not None:
            self._asking = LayerFanout(
                self._calls, plan, [lane.end for lane in lanes], self._fingerprint, self._layer_deadline_s
            )
        if epoch.complete and plan.covers_everything():
            self._ready.set()
        else:
            self._ready.clear()
        for dispatch in list(self._parked):
            self._unpark(dispatch)

    def _unpark(self, dispatch: Dispatch) -> None:
        if dispatch in self._parked:
            self._parked.discard(dispatch)
            dispatch.retry_waiting()
