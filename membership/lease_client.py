"""The worker's side of registration and leases: it takes a seat and keeps it.

Knows nothing of what the worker does. 1. ``register`` until the controller answers or the deadline passes;
2. ``keep`` reports forever; where the controller does not know the lease (it restarted, or the lease ran out) it registers again
and says what it holds. 3. ``follow`` hands on the lease's orders. A controller that is away stops nothing, and an
earlier one than has been heard counts as away. A refusal ends ``keep`` with its error.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

import grpc

from ..proto.errors import Code, FleetError, from_call
from ..proto.generated import membership_pb2 as pb
from ..proto.generated import membership_pb2_grpc as rpc
from .channel import open_channel
from .epoch import ExpertSet

_log = logging.getLogger(__name__)
_AWAY = {Code.LANE_LOST, Code.NOT_READY, Code.DRAINING, Code.EXPIRED, Code.DEADLINE, Code.INTERNAL}
_CALL_TIMEOUT_S = 2.0
_MAX_BACKOFF_S = 1.0


class LeaseClient:
    """One seat at one controller; every method belongs to one event loop."""

    def __init__(self, controller: str, seat: str) -> None:
        self.controller = controller
        self.seat = seat
        self.lease_id = 0
        self._incarnation = 0  # of the newest controller that has given this seat a lease
        self._request = pb.RegisterRequest()
        self._channel: grpc.aio.Channel | None = None
        self._leased = asyncio.Event()  # a lease that was not followed yet

    async def register(
        self,
        address: str,
        pid: int,
        node: str,
        fingerprint: str = "",
        dtype: str = "",
        held: ExpertSet | None = None,
        capacity: int = 0,
        *,
        offer: str = "",
        deadline_s: float = 60.0,
    ) -> pb.RegisterReply:
        """Takes the seat; a refusal is raised at once, an absent controller only after ``deadline_s``."""
        self._request = pb.RegisterRequest(
            seat=self.seat,
            address=address,
            pid=pid,
            node=node,
            fingerprint=fingerprint,
            dtype=dtype,
            held=held.to_proto() if held is not None else None,
            capacity=capacity,
            offer=offer,
        )
        loop = asyncio.get_running_loop()
        give_up, backoff_s = loop.time() + deadline_s, 0.05
        while True:
            try:
                return await self._register_once()
            except FleetError as error:
                if error.code not in _AWAY:
                    raise
                if loop.time() + backoff_s > give_up:
                    away = f"controller {self.controller} did not answer for {deadline_s:g} s: {error}"
                    raise FleetError(error.code, away) from error
            await asyncio.sleep(backoff_s)
            backoff_s = min(_MAX_BACKOFF_S, backoff_s * 2)

    async def keep(self, report: Callable[[], pb.WorkerReport], interval_s: float = 0.5) -> None:
        """Reports for ever; returns only by cancellation or with the controller's refusal."""
        away = False
        while True:
            try:
                await self._report_once(report())
                if away:
                    _log.info("%s: controller %s is back", self.seat, self.controller)
                away = False
            except FleetError as error:
                if error.code not in _AWAY:
                    raise
                if not away:
                    _log.warning("%s: controller %s does not answer, going on: %s", self.seat, self.controller, error)
                away = True
            await asyncio.sleep(interval_s)

    async def follow(self, on_order: Callable[[pb.Order], None]) -> None:
        """For ever, from lease to lease, once registered; a stream that breaks is opened again."""
        while True:
            self._leased.clear()
            try:
                request = pb.FollowRequest(lease_id=self.lease_id)
                async for order in rpc.MembershipStub(self._open()).Follow(request):
                    on_order(order)
                await self._leased.wait()  # the lease is over
            except FleetError as error:
                _log.error("%s: %s gave an order that cannot be read: %s", self.seat, self.controller, error)
            except grpc.aio.AioRpcError as error:
                what = from_call(error)
                _log.info("%s: orders of %s broke off, trying again: %s", self.seat, self.controller, what)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._leased.wait(), _MAX_BACKOFF_S)

    async def report(self, report: pb.WorkerReport) -> None:
        """One report out of turn, so that a change of state is known at once; an absent controller is no error."""
        try:
            await self._report_once(report)
        except FleetError as error:
            if error.code not in _AWAY:
                raise

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    async def _register_once(self) -> pb.RegisterReply:
        reply: pb.RegisterReply = await self._call("Register", self._request)
        if 0 < reply.incarnation < self._incarnation:
            earlier = f"{reply.incarnation} is an earlier one than {self._incarnation}, which has been heard"
            raise FleetError(Code.NOT_READY, f"controller {self.controller}: {earlier}")
        self._incarnation = max(self._incarnation, reply.incarnation)
        self.lease_id = reply.lease_id
        self._leased.set()
        return reply

    async def _report_once(self, report: pb.WorkerReport) -> None:
        reply: pb.ReportReply = await self._call("Report", pb.ReportRequest(lease_id=self.lease_id, report=report))
        if reply.known:
            return
        self._request.held.CopyFrom(report.held)
        await self._register_once()
        await self._call("Report", pb.ReportRequest(lease_id=self.lease_id, report=report))

    async def _call(self, method: str, request: Any) -> Any:
        try:
            return await getattr(rpc.MembershipStub(self._open()), method)(request, timeout=_CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise from_call(error) from error

    def _open(self) -> grpc.aio.Channel:
        if self._channel is None:
            self._channel = open_channel(self.controller)
        return self._channel
