"""The controller: a gRPC server that hands out seats and alone commits epochs.

Knows nothing of Ray, models or tokens. 1. Workers register and report; 2. whenever the set of ready members changes,
it waits a moment for others and commits the next epoch; 3. every watcher gets it. It keeps nothing on disk: after a
restart the workers register again with what they hold, and the first epoch waits until the picture is whole or one
lease has passed.
"""

import asyncio
import logging
import os
import socket
import time
from collections.abc import AsyncIterator

import grpc

from ..membership import wire
from ..membership.channel import SERVER_OPTIONS, listen
from ..membership.epoch import NO_EPOCH, Epoch, EpochId
from ..proto.errors import FleetError
from ..proto.generated import membership_pb2 as pb
from ..proto.generated import membership_pb2_grpc as rpc
from .fence import Fence, raise_all
from .seats import FleetShape, Seat, SeatBook

_log = logging.getLogger(__name__)
LEASE_S = 3.0
_COALESCE_S = 0.05
_TICK_S = 0.25
_STALL_S = 1.0
_FENCE_S = 0.5


class Controller(rpc.MembershipServicer):
    """One fleet's controller; all of it runs on the loop that called ``start``."""

    def __init__(self, shape: FleetShape, host: str = "127.0.0.1", port: int = 0, lease_s: float = LEASE_S) -> None:
        self.epoch = Epoch(NO_EPOCH, shape.fingerprint, shape.dtype, (), (), complete=False)
        self._incarnation = time.time_ns() // 1_000_000
        self._book = SeatBook(shape, lease_s, self._incarnation)
        self._settled_at = time.monotonic() + lease_s
        self._host, self._port = host, port
        self.address = f"{host}:{port}"
        self._changed = asyncio.Event()
        self._published = asyncio.Condition()
        self._fence = Fence()
        self._server: grpc.aio.Server | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        self._server = wire.make_server(SERVER_OPTIONS)
        rpc.add_MembershipServicer_to_server(self, self._server)
        self.address = await listen(self._server, self._host, self._port)
        self._port = int(self.address.rpartition(":")[2])
        loops = (self._expire_leases(), self._commit_epochs(), self._raise_minimum())
        self._tasks = [asyncio.create_task(loop) for loop in loops]
        _log.info("controller %s serves %s", self._incarnation, self.address)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def Register(self, request: pb.RegisterRequest, context: grpc.aio.ServicerContext) -> pb.RegisterReply:
        try:
            reply = self._book.register(request, time.monotonic())
        except FleetError as error:
            _log.warning("refused %s (pid %d on %s): %s", request.seat, request.pid, request.node, error)
            await context.abort(error.status, error.details)
        self._changed.set()
        _log.info("%s is taken by pid %d on %s at %s", request.seat, request.pid, request.node, request.address)
        return reply

    async def Report(self, request: pb.ReportRequest, context: grpc.aio.ServicerContext) -> pb.ReportReply:
        try:
            known = self._book.report(request.lease_id, request.report, time.monotonic())
        except FleetError as error:
            await context.abort(error.status, error.details)
        self._changed.set()
        return pb.ReportReply(known=known)

    async def Watch(self, request: pb.WatchRequest, context: grpc.aio.ServicerContext) -> AsyncIterator[pb.Epoch]:
        seen = NO_EPOCH
        while True:
            async with self._published:
                while not self.epoch.id > seen:
                    await self._published.wait()
            epoch = self.epoch
            seen = epoch.id
            yield epoch.to_proto()

    async def Status(self, request: pb.StatusRequest, context: grpc.aio.ServicerContext) -> pb.FleetStatus:
        workers = [self._own_status(), *(_worker_status(seat) for seat in self._book.seats.values())]
        missing = self._book.missing() or ("" if self.epoch.complete else "the first epoch is being committed")
        return pb.FleetStatus(
            workers=workers, epoch=self.epoch.id.to_proto(), ready=self.epoch.complete, missing=missing
        )

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

    async def _commit_epochs(self) -> None:
        while True:
            await self._changed.wait()
            await asyncio.sleep(_COALESCE_S)
            self._changed.clear()
            epoch = self._picture()
            if epoch.same_members(self.epoch) or self._still_gathering(epoch):
                continue
            self._fence.publish(epoch.id, time.monotonic())
            async with self._published:
                self.epoch = epoch
                self._published.notify_all()
            names = ", ".join(member.seat for member in (*epoch.attention, *epoch.experts))
            _log.info("epoch %s: %s (%s)", epoch.id, names, "complete" if epoch.complete else self._book.missing())

    async def _raise_minimum(self) -> None:
        while True:
            await asyncio.sleep(_FENCE_S)
            users = [seat for seat in self._book.seats.values() if seat.role == "attention" and seat.live]
            in_use = [EpochId.from_proto(seat.report.epoch) for seat in users]
            due = self._fence.due(in_use, time.monotonic())
            shards = self._book.ready("expert")
            behind = [seat.address for seat in shards if EpochId.from_proto(seat.report.min_epoch) < due]
            if behind:
                await raise_all(behind, due)

    def _picture(self) -> Epoch:
        return Epoch(
            EpochId(self._incarnation, self.epoch.id.counter + 1),
            self._book.shape.fingerprint,
            self._book.shape.dtype,
            experts=tuple(seat.member() for seat in self._book.ready("expert")),
            attention=tuple(seat.member() for seat in self._book.ready("attention")),
            complete=not self._book.missing(),
        )

    def _still_gathering(self, epoch: Epoch) -> bool:
        """Whether workers that serve already may just not have registered again; their reports keep asking."""
        return self.epoch.id == NO_EPOCH and not epoch.complete and time.monotonic() < self._settled_at

    def _own_status(self) -> pb.WorkerStatus:
        report = pb.WorkerReport(
            seat="controller", state="ready", epoch=self.epoch.id.to_proto(), pid=os.getpid(),
            fingerprint=self._book.shape.fingerprint,
        )  # fmt: skip
        return pb.WorkerStatus(
            role="controller", seat="controller", pid=os.getpid(), node=socket.gethostname(), address=self.address,
            state="ready", report=report,
        )  # fmt: skip


def _worker_status(seat: Seat) -> pb.WorkerStatus:
    return pb.WorkerStatus(
        role=seat.role,
        seat=seat.name,
        pid=seat.pid,
        node=seat.node,
        address=seat.address,
        state=seat.state,
        report=seat.report,
        num_experts=seat.held.count or seat.assigned.count,
    )
