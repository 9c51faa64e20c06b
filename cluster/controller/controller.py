"""The controller: a gRPC server that hands out seats, says who holds what, and alone commits epochs.

Knows nothing of Ray, models or tokens. 1. Workers register, report and follow their orders; 2. whenever the members or what they hold
change, experts are laid out anew if they must be, the next epoch is committed, and every shard is told what to hold; 3. every
watcher gets the epoch. What is wanted may lie in a file; all else it learns again from the workers after a restart, and until the
picture is whole or one lease has passed, it commits nothing and takes nothing from anybody.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path

import grpc

from ...checkpoint.checkpoint_headers import Outline
from ...membership import security
from ...membership.channel import SERVER_OPTIONS, listen
from ...membership.epoch import NO_EPOCH, Epoch, EpochId
from ...membership.port_probe import is_nobody_at
from ...proto.address import join_address, split_address
from ...proto.errors import Code, FleetError, abort
from ...proto.generated import membership_pb2 as pb
from ...proto.generated import membership_pb2_grpc as rpc
from .budget import Budget
from .desired_state import DesiredState
from .epoch_fence import Fence, raise_all
from .header_stream import head_pieces
from .incarnation import next_incarnation
from .placement_settings import PlacementSettings
from .reconciler import Reconciler
from .seats import NOBODY, FleetShape, Seat, SeatBook
from .status_report import Overview
from .stragglers import SlowRule, SlowWatch, find_slow
from .wishes import Wishes

_log = logging.getLogger(__name__)
LEASE_S = 3.0
_COALESCE_S = 0.05
_TICK_S = 0.25
_STALL_S = 1.0
_FENCE_S = 0.5
_REBALANCE_S = 60.0
_LOOKS_AFTER_S = (0.0, 0.02, 0.1, 0.3, 0.6)
# So long a claim to a held seat waits for the holder to report; a worker does so each half second.
_CLAIM_S = 1.2
_CLAIM_POLL_S = 0.05


class Controller(rpc.MembershipServicer):
    """One fleet's controller; all of it runs on the loop that called ``start``."""

    def __init__(
        self,
        shape: FleetShape,
        wanted: DesiredState,
        host: str = "127.0.0.1",
        port: int = 0,
        lease_s: float = LEASE_S,
        state_file: Path | None = None,
        seats_are_offered: bool = False,
        slow: SlowRule | None = None,
        outline: Outline | None = None,
        placing: PlacementSettings | None = None,
        versions: Mapping[str, str] | None = None,
        budget: Budget | None = None,
    ) -> None:
        """What ``state_file`` says is wanted goes before ``wanted``; changes are kept there.

        Where ``seats_are_offered``, nodes that come and go decide which seats there are, and ``Scale`` takes no numbers. Without
        ``outline`` nobody can be told what lies in files that he lacks. ``versions`` are told to nodes that would join. ``budget`` is of
        the machine that all workers share, if they do.
        """
        self.epoch = Epoch(NO_EPOCH, shape.fingerprint, shape.dtype, (), (), complete=False)
        self._incarnation = next_incarnation(state_file and state_file.with_suffix(".incarnation"))
        self._state_file = state_file
        self._outline = outline
        kept = DesiredState.load(state_file) if state_file is not None else None
        self._book = SeatBook(shape, kept or wanted, lease_s, self._incarnation)
        self._fleet = Reconciler(self._book, self._incarnation, time.monotonic() + lease_s, placing)
        self._overview = Overview(self._book, self._fleet, versions or {})
        self._orders: dict[int, pb.Order] = {}  # by lease
        self._host, self._port = host, port
        self.address = join_address(host, port)
        self._changed = asyncio.Event()
        self._published = asyncio.Condition()
        self._ordered = asyncio.Condition()
        self._fence = Fence()
        self._slow = slow or SlowRule()
        self._granting = Wishes(self._book, seats_are_offered, budget)
        self._wishes = asyncio.Lock()  # one after the other
        self._server: grpc.aio.Server | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._probes: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = security.make_server(SERVER_OPTIONS)
        rpc.add_MembershipServicer_to_server(self, self._server)
        self.address = await listen(self._server, self._host, self._port)
        _, self._port = split_address(self.address)
        loops = [self._expire_leases(), self._converge(), self._raise_minimum(), self._rebalance()]
        if self._slow.after_s:
            loops.append(self._drain_slow())
        self._tasks = [asyncio.create_task(loop) for loop in loops]
        _log.info("controller %s serves %s", self._incarnation, self.address)

    async def stop(self) -> None:
        for task in (*self._tasks, *self._probes):
            task.cancel()
        await asyncio.gather(*self._tasks, *self._probes, return_exceptions=True)
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def Register(self, request: pb.RegisterRequest, context: grpc.aio.ServicerContext) -> pb.RegisterReply:
        try:
            await self._hear_holder(request)
            reply = self._book.register(request, time.monotonic())
        except FleetError as error:
            _log.warning("refused %s (pid %d on %s): %s", request.seat, request.pid, request.node, error)
            await abort(context, error)
        self._changed.set()
        _log.info("%s is taken by pid %d on %s at %s", request.seat, request.pid, request.node, request.address)
        return reply

    async def _hear_holder(self, request: pb.RegisterRequest) -> None:
        """Returns once nobody else has the seat, or its holder has reported. Raises FleetError NOT_READY where neither is so yet."""
        asked_at = time.monotonic()
        while (holder := self._book.rival(request)) is not None and holder.last_seen <= asked_at:
            lease_id = holder.lease_id
            if await is_nobody_at(holder.address) and holder.lease_id == lease_id:
                self._lose(holder)
                return
            if time.monotonic() - asked_at > _CLAIM_S:
                what = f"seat: {holder.name} is held by {holder.holder(time.monotonic())}, who says nothing; ask again"
                raise FleetError(Code.NOT_READY, what)
            await asyncio.sleep(_CLAIM_POLL_S)

    async def Report(self, request: pb.ReportRequest, context: grpc.aio.ServicerContext) -> pb.ReportReply:
        try:
            known = self._book.report(request.lease_id, request.report, time.monotonic())
        except FleetError as error:
            await abort(context, error)
        if known:
            self._overview.note(request.lease_id, request.report, time.monotonic())
        self._changed.set()
        return pb.ReportReply(known=known)

    async def Follow(self, request: pb.FollowRequest, context: grpc.aio.ServicerContext) -> AsyncIterator[pb.Order]:
        lease_id = request.lease_id
        sent: pb.Order | None = None
        try:
            while self._book.holder(lease_id) is not None:
                newest = self._orders.get(lease_id)
                if newest is not None and newest != sent:
                    sent = newest
                    yield newest
                    continue
                async with self._ordered:
                    await self._ordered.wait()
        finally:
            seat = self._book.holder(lease_id)
            if seat is not None and self._server is not None:
                probe = asyncio.create_task(self._look_for(seat, lease_id))
                self._probes.add(probe)
                probe.add_done_callback(self._probes.discard)

    async def Watch(self, request: pb.WatchRequest, context: grpc.aio.ServicerContext) -> AsyncIterator[pb.Epoch]:
        seen = NO_EPOCH
        while True:
            async with self._published:
                while not self.epoch.id > seen:
                    await self._published.wait()
            epoch = self.epoch
            seen = epoch.id
            yield epoch.to_proto()

    async def Scale(self, request: pb.ScaleRequest, context: grpc.aio.ServicerContext) -> pb.ScaleReply:
        try:
            wanted = await self._scale(request)
        except FleetError as error:
            await abort(context, error)
        return pb.ScaleReply(
            expert_seats=wanted.seats("expert"), attention_seats=wanted.seats("attention"), replicas=wanted.replicas
        )

    async def ReadHeads(
        self, request: pb.ReadHeadsRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.HeadPiece]:
        try:
            async for piece in head_pieces(self._outline, list(request.files)):
                yield piece
        except FleetError as error:
            await abort(context, error)

    async def Status(self, request: pb.StatusRequest, context: grpc.aio.ServicerContext) -> pb.FleetStatus:
        if request.seat:
            return self._overview.of_seat(request.seat, self.epoch)
        return self._overview.of_all(self.epoch, self.address)

    @property
    def desired(self) -> DesiredState:
        """An immutable value, so any thread may read it."""
        return self._book.wanted

    async def occupied(self) -> set[str]:
        """Workers' seats that are desired, or that a worker has yet to leave."""
        return {seat.name for seat in self._book.seats.values() if seat.role != "gateway"}

    async def vacancies(self) -> dict[str, str]:
        """Each desired seat without a process, and which of VACANT_STATES it is in."""
        return {seat.name: seat.state for seat in self._book.seats.values() if seat.wanted and seat.state in NOBODY}

    async def offer(self, seats: Mapping[str, str]) -> None:
        """Their nodes have come, each with an offer of its own. Raises FleetError for what is no seat."""
        async with self._wishes:
            self._want(self.desired.offered(seats))
            self._granting.offers |= seats

    async def forget(self, seats: Iterable[str]) -> None:
        """Their nodes are gone for good."""
        async with self._wishes:
            self._want(self.desired.forgotten(seats))

    async def _scale(self, request: pb.ScaleRequest, lease_id: int = 0) -> DesiredState:
        """What is wanted from now on, or would be. Raises FleetError BAD_REQUEST, also once ``lease_id``, if given, is over."""
        async with self._wishes:
            if lease_id and self._book.holder(lease_id) is None:
                raise FleetError(Code.BAD_REQUEST, f"drain: the process that sat at {request.drain} is gone")
            wanted = self._granting.granted(request)
            if not request.without:
                self._want(wanted)
            return wanted

    def _want(self, wanted: DesiredState) -> None:
        """Raises FleetError INTERNAL where it cannot be kept."""
        if wanted == self.desired:
            return
        if self._state_file is not None:
            try:
                wanted.save(self._state_file)
            except OSError as error:
                what = f"{self._state_file} cannot be written ({error.strerror}); what is wanted stays as it was"
                raise FleetError(Code.INTERNAL, what) from error
        self._book.want(wanted)
        self._changed.set()
        _log.info("wanted from now on: %s", wanted)

    async def _look_for(self, seat: Seat, lease_id: int) -> None:
        """The worker's stream broke: is anybody at its address? One that is taken may be a process that is just ending, whose
        streams end before it ceases to listen."""
        address = seat.address
        for pause_s in _LOOKS_AFTER_S:
            await asyncio.sleep(pause_s)
            if await is_nobody_at(address):
                if seat.lease_id == lease_id:  # nobody else has it since
                    self._lose(seat)
                return

    def _lose(self, seat: Seat) -> None:
        _log.warning("%s (pid %d on %s) is lost: nobody is at %s", seat.name, seat.pid, seat.node, seat.address)
        self._book.lose(seat)
        self._changed.set()

    async def _expire_leases(self) -> None:
        before = time.monotonic()
        while True:
            await asyncio.sleep(_TICK_S)
            now = time.monotonic()
            stall_s = now - before - _TICK_S
            before = now
            if stall_s > _STALL_S:
                _log.warning("the controller stood still for %.1f s; leases are extended by as much", stall_s)
                self._book.forgive(stall_s)
            for seat in self._book.expire(now):
                _log.warning("%s (pid %d on %s) is lost: no report for %g s", seat.name, seat.pid, seat.node, LEASE_S)
                self._changed.set()

    async def _converge(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FENCE_S):
                    await self._changed.wait()
                await asyncio.sleep(_COALESCE_S)
            self._changed.clear()
            await self._commit()  # whoever is gone is told at once, where its experts go takes thought
            if (question := self._fleet.question()) is not None:
                self._fleet.adopt(await asyncio.to_thread(question.answer))
                await self._commit()
            await self._give_orders()

    async def _rebalance(self) -> None:
        while True:
            await asyncio.sleep(_REBALANCE_S)
            if (question := self._fleet.rebalancing()) is not None:
                layout = await asyncio.to_thread(question.answer)
                if layout.moved and self._fleet.settled():
                    mib = layout.moved * self._book.shape.expert_bytes / (1 << 20)
                    _log.info("%d experts (%.1f MiB) move to where they are asked for", layout.moved, mib)
                    self._fleet.adopt(layout)
                    self._changed.set()

    async def _drain_slow(self) -> None:
        """One at a time, and only when all else is at rest."""
        watch = SlowWatch(self._slow.after_s)
        kept: set[str] = set()  # addresses of slow shards that the fleet cannot do without
        while True:
            await asyncio.sleep(_TICK_S)
            shards = {seat.address: seat for seat in self._book.of_role("expert") if seat.serves and seat.stays}
            classes = {address: seat.report.numerics for address, seat in shards.items()}
            witnesses = [seat.report.seconds_per_expert for seat in self._book.of_role("attention") if seat.live]
            stayed = watch.look(find_slow(witnesses, classes, self._slow.factor), time.monotonic())
            kept &= set(stayed)
            due = next((address for address in stayed if address not in kept), None)
            if due is None or not self._fleet.settled():
                continue
            name, lease_id = shards[due].name, shards[due].lease_id
            try:
                await self._scale(pb.ScaleRequest(drain=name), lease_id)
                _log.warning("%s has been slower than its peers for %g s and is drained", name, self._slow.after_s)
            except FleetError as error:
                kept.add(due)
                _log.warning(
                    "%s has been slower than its peers for %g s and stays: %s", name, self._slow.after_s, error
                )

    async def _commit(self) -> None:
        epoch = self._fleet.next_epoch(time.monotonic())
        if epoch is None:
            return
        self._fence.publish(epoch.id, time.monotonic())
        async with self._published:
            self.epoch = epoch
            self._published.notify_all()
        names = ", ".join(member.seat for member in (*epoch.attention, *epoch.experts))
        if shortfall := self._fleet.shortfall():
            _log.warning("%s", shortfall)
        _log.info("epoch %s: %s (%s)", epoch.id, names, "complete" if epoch.complete else self._book.missing())

    async def _give_orders(self) -> None:
        orders = self._fleet.orders(time.monotonic())
        if orders != self._orders:
            self._orders = orders
            async with self._ordered:
                self._ordered.notify_all()

    async def _raise_minimum(self) -> None:
        while True:
            await asyncio.sleep(_FENCE_S)
            users = [seat for seat in self._book.of_role("attention") if seat.live]
            in_use = [EpochId.from_proto(seat.report.epoch) for seat in users]
            due = self._fence.due(in_use, time.monotonic())
            self._fleet.forget_before(due)
            shards = [seat for seat in self._book.of_role("expert") if seat.serves]
            behind = [seat.address for seat in shards if EpochId.from_proto(seat.report.min_epoch) < due]
            if behind:
                await raise_all(behind, due)
