"""The router of one attention worker: epochs and lanes in, dispatches out.

Knows nothing of attention and HTTP. Everything belongs to the engine's thread; what other threads may call says so. The router replaces
its routing table as a whole whenever an epoch comes or a lane goes up or down. A lane that is down is a local, passing suspicion
and changes no membership.
"""

import logging
import threading
import time
from collections.abc import Collection, Iterator

import torch

from ..kernels import native_lanes
from ..membership.epoch import NO_EPOCH, Epoch, EpochId
from ..proto.codec import Dispatch, Hello, dispatch_parts, short_fingerprint
from ..proto.frame_prefix import Buffer
from ..proto.rows import Rows
from ..transport.io_thread import IoThread
from ..transport.pair_group import ALL_ON_THE_LANE, PairSettings
from ..transport.reactor import Reactor
from .dispatch.counters import Counters, Timing
from .dispatch.deadline_timers import DeadlineTimers
from .dispatch.fanout import FanoutResult, LayerFanout
from .dispatch.layer_dispatch import LayerDispatch
from .dispatch.routing_table import RoutingTable
from .dispatch.shard_requests import Routes, ShardRequest, partition_routes
from .lanes.frame_in_flight import FrameInFlight, FrameLane
from .lanes.lane import Lane
from .placement.expert_loads import ExpertLoads

logger = logging.getLogger(__name__)


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
        self.timings: list[Timing] = []  # of frames that were answered since the last dispatch
        self.layer_deadline_s = layer_deadline_s
        self.deadlines: DeadlineTimers[LayerDispatch] = DeadlineTimers(reactor, LayerDispatch.expire)
        self.hedge_timers: DeadlineTimers[LayerDispatch] = DeadlineTimers(reactor, LayerDispatch.hedge)
        self.loads = loads  # None where nobody wants to know
        # One snapshot, replaced as a whole: a routing table and the lane of each of its members.
        self._snapshot: tuple[RoutingTable, tuple[Lane, ...]] = (RoutingTable(NO_EPOCH, (), ()), ())
        self._fanout: LayerFanout | None = None  # of that table
        self._calls = native_lanes.calls()
        self._io, self._reactor = io, reactor
        self._hello = hello
        self._fingerprint = short_fingerprint(hello.fingerprint)
        self._lost_expert_wait_s = lost_expert_wait_s
        self._local_lanes, self._tcp_lanes = local_lanes, tcp_lanes
        self._pair = pair
        self._epoch: Epoch | None = None
        self._lanes: dict[tuple[str, str], Lane] = {}
        self._num_frames = 0  # whose ids were given
        self._parked: set[LayerDispatch] = set()
        self._ready = threading.Event()

    def dispatch(
        self, layer: int, x: torch.Tensor, topk_ids: torch.Tensor, topk_weights: torch.Tensor, priority: int = 0
    ) -> LayerDispatch:
        """Sends contiguous rows ``x`` [T, H] to the experts ``topk_ids`` [T, K]; the result is awaited, ``combined``, then closed."""
        result = self._fan_out(layer, x, topk_ids, priority)
        dispatch = LayerDispatch(self, layer, x, topk_ids, topk_weights, priority, self._lost_expert_wait_s)
        if result is None:
            routing = self.routing_table.assign(layer, topk_ids)
            dispatch.start(*self._frames_to(dispatch, routing, topk_ids, None))
        else:
            dispatch.start(self._sent_frames(dispatch, result), result.unroutable)
        # What follows is done while the shards have begun.
        if not dispatch.done:
            self.deadlines.end_at(dispatch, dispatch.deadline)
        self.counters.dispatches += 1
        self.counters.routes += topk_ids.numel()
        if self.loads is not None:
            self.loads.count(layer, dispatch.experts)
        self._learn_latencies()
        return dispatch

    def wait_usable(self, timeout_s: float) -> bool:
        """Whether, within ``timeout_s``, every expert of a complete epoch can be reached over a lane; not for the owner."""
        return self._ready.wait(timeout_s)

    @property
    def usable(self) -> bool:
        """For any thread."""
        return self._ready.is_set()

    @property
    def routing_table(self) -> RoutingTable:
        """For any thread."""
        return self._snapshot[0]

    @property
    def quarantined(self) -> list[str]:
        """Addresses of shards that answer only for what no other holds, as a replica refuted an answer; for any thread."""
        return [lane.address for lane in list(self._lanes.values()) if lane.quarantined]

    def seconds_per_expert(self) -> dict[str, float]:
        """Of every shard that has answered of late, by address; for any thread."""
        now = time.monotonic()
        paces = {lane.address: lane.expert_pace.seconds(now) for lane in list(self._lanes.values())}
        return {address: seconds for address, seconds in paces.items() if seconds is not None}

    @property
    def num_waiting(self) -> int:
        """Dispatches that wait for an expert which no usable shard holds; for any thread."""
        return sum(dispatch.waits_for_experts for dispatch in list(self._parked))

    def build_frames(
        self, dispatch: LayerDispatch, routes: Routes, avoid: Collection[str], *, is_recheck: bool = False
    ) -> tuple[Iterator[FrameInFlight], Routes]:
        """Frames for ``routes`` under the current table, and the routes that no shard but those of ``avoid`` can answer now."""
        experts = torch.from_numpy(dispatch.experts[routes])
        assign = self.routing_table.assign_others if is_recheck else self.routing_table.assign
        return self._frames_to(dispatch, assign(dispatch.layer, experts, avoid), experts, routes)

    def _frames_to(
        self, dispatch: LayerDispatch, owners: torch.Tensor, experts: torch.Tensor, routes: Routes | None
    ) -> tuple[Iterator[FrameInFlight], Routes]:
        table, lanes = self._snapshot
        requests, unroutable = partition_routes(
            owners, len(lanes), experts, routes, dispatch.top_k, dispatch.rows.count
        )
        if len(requests) > 1:  # the shard that will take longest is asked first
            requests.sort(key=lambda one: lanes[one.owner].expert_pace.expected_s(one.num_experts), reverse=True)
        return self._frames(dispatch, table.epoch, lanes, requests), unroutable

    def _frames(
        self, dispatch: LayerDispatch, epoch: EpochId, lanes: tuple[Lane, ...], requests: list[ShardRequest]
    ) -> Iterator[FrameInFlight]:
        for request in requests:
            lane = lanes[request.owner]
            for piece in request.cut(lane.max_rows(dispatch.rows.row_bytes, dispatch.top_k)):
                yield self._frame(dispatch, epoch, lane, piece)

    def _frame(self, dispatch: LayerDispatch, epoch: EpochId, lane: Lane, request: ShardRequest) -> FrameInFlight:
        self.counters.frames += 1
        self._num_frames += 1
        num_rows = len(request.rows)
        frame = FrameInFlight(
            dispatch, lane, self._num_frames, request.routes, dispatch.rows, num_rows, request.num_experts
        )
        left_s = dispatch.deadline - time.monotonic()
        frame.wire = self._wire(dispatch, epoch, request, frame.frame_id, left_s)
        frame.row_ids = None if num_rows == dispatch.rows.count else torch.from_numpy(request.rows)
        return frame

    def _fan_out(self, layer: int, x: torch.Tensor, topk_ids: torch.Tensor, priority: int) -> FanoutResult | None:
        """Sends by a compiled call what can be sent so; None where none is for this layer."""
        if self._fanout is None:
            return None
        result = self._fanout(layer, x, topk_ids, priority, self._num_frames + 1)
        if result is not None:
            self._num_frames += result.num_frames
        return result

    def _sent_frames(self, dispatch: LayerDispatch, result: FanoutResult) -> Iterator[FrameInFlight]:
        """The frames that the compiled call has sent, then those that it left."""
        table, lanes = self._snapshot
        num_sent = 0
        for request in result.sent():
            num_sent += 1
            lane = lanes[request.owner]
            frame = FrameInFlight(
                dispatch, lane, request.frame_id, request.routes, dispatch.rows, request.num_rows, request.num_experts
            )
            frame.routes_at = request.routes_at
            if request.num_unsent:
                frame.unsent = (
                    self._buffers(dispatch, table.epoch, lane, result.requests()[request.owner], frame),
                    request.num_unsent,
                )
            yield frame
        self.counters.frames += num_sent
        if num_sent < result.num_frames:
            yield from self._frames(dispatch, table.epoch, lanes, result.unsent())

    def _buffers(
        self, dispatch: LayerDispatch, epoch: EpochId, lane: Lane, request: ShardRequest, frame: FrameInFlight
    ) -> tuple[Buffer, ...]:
        """A frame as the compiled call has sent it, in memory that stays."""
        wire = self._wire(dispatch, epoch, request, frame.frame_id, self.layer_deadline_s)
        rows = Rows.of(dispatch.rows.tensor[torch.from_numpy(request.rows)])
        return dispatch_parts(wire.with_rows(rows), lane.version)

    def _wire(
        self, dispatch: LayerDispatch, epoch: EpochId, request: ShardRequest, frame_id: int, left_s: float
    ) -> Dispatch:
        return Dispatch(
            frame_id,
            self._fingerprint,
            (epoch.incarnation, epoch.counter),
            dispatch.layer,
            dispatch.priority,
            int(left_s * 1e6),
            dispatch.rows,
            request.places,
            request.experts,
        )

    def _learn_latencies(self) -> None:
        """After a layer is on its way, as the engine had waited for the answers that are learnt from."""
        timings, self.timings = self.timings, []
        is_hedging = self.routing_table.has_replicas
        for lane, num_routes, num_experts, seconds, at in timings:
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
                self._renew_table,
                local=self._local_lanes,
                tcp=self._tcp_lanes,
                pair=self._pair,
            )
        logger.info("epoch %s: %d expert shards, complete: %s", epoch.id, len(epoch.experts), epoch.complete)
        self._renew_table()

    def close(self) -> None:
        """Also from another thread, when the owner has ended."""
        self._epoch = None
        lanes, self._lanes = list(self._lanes.values()), {}
        for lane in lanes:
            lane.close()

    def quarantine(self, dispatch: LayerDispatch, lanes: list[FrameLane]) -> None:
        """Their shards gave answers that are not finite, where a second replica gave finite ones."""
        for lane in lanes:
            lane.quarantined = True
            logger.error(
                "%s at %s is quarantined: an answer of layer %d is not finite, a replica's is",
                lane.seat,
                lane.address,
                dispatch.layer,
            )
        self._renew_table()

    def park(self, dispatch: LayerDispatch, pause_s: float) -> None:
        """The dispatch tries again when the routing table changes, and after ``pause_s``: a refusal may have passed."""
        if dispatch not in self._parked:
            self._parked.add(dispatch)
            self._reactor.call_later(pause_s, lambda: self._unpark(dispatch))

    def forget(self, dispatch: LayerDispatch) -> None:
        self._parked.discard(dispatch)
        self.deadlines.forget(dispatch)
        self.hedge_timers.forget(dispatch)
        if dispatch.error is not None:
            self.counters.failed_dispatches += 1
        self.counters.faulty_rows += len(dispatch.faults)

    def _renew_table(self) -> None:
        epoch = self._epoch
        if epoch is None:
            return
        up = {lane.seat for lane in self._lanes.values() if lane.up}
        suspected = {lane.seat for lane in self._lanes.values() if lane.suspected}
        quarantined = {lane.seat for lane in self._lanes.values() if lane.quarantined}
        table = RoutingTable(epoch.id, epoch.experts, up, self._snapshot[0], suspected, quarantined)
        lanes = tuple(self._lanes[member.seat, member.address] for member in epoch.experts)
        self._snapshot = (table, lanes)
        if self._calls is not None:
            self._fanout = LayerFanout(
                self._calls, table, [lane.end for lane in lanes], self._fingerprint, self.layer_deadline_s
            )
        if epoch.complete and table.covers_everything():
            self._ready.set()
        else:
            self._ready.clear()
        for dispatch in list(self._parked):
            self._unpark(dispatch)

    def _unpark(self, dispatch: LayerDispatch) -> None:
        if dispatch in self._parked:
            self._parked.discard(dispatch)
            dispatch.retry_waiting()
