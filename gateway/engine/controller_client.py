"""This gateway's place in the fleet, and what the controller tells it.

Knows nothing of HTTP. 1. ``run`` registers the seat, reports state and delivered tokens, and follows epochs, for as long as
the gateway lives; 2. a controller that is away changes nothing but what ``status`` can say. ``/ready`` asks ``missing``.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from typing import Any

import grpc

from ...membership.channel import open_channel
from ...membership.epoch import Epoch
from ...membership.lease_client import LeaseClient
from ...membership.watch import EpochWatch
from ...proto.address import is_every_address, join_address, own_host
from ...proto.errors import Code, FleetError, from_call
from ...proto.generated import membership_pb2 as pb
from ...proto.generated import membership_pb2_grpc as rpc
from .backend import Backend, Worker

_log = logging.getLogger(__name__)
_TIMEOUT_S = 2.0
_RETRY_S = 5.0


class ControllerClient:
    """Belongs to one event loop."""

    def __init__(self, controller: str, seat: str, backend: Backend, num_delivered: Callable[[], int]) -> None:
        self.controller = controller
        self.seat = seat
        self.epoch: Epoch | None = None
        self.state = "ready"
        self.address = ""
        self.refusal, self.refused = "", asyncio.Event()  # of a gateway that was never accepted
        self._backend = backend
        self._num_delivered = num_delivered
        self._channel: grpc.aio.Channel | None = None
        self._last_status = pb.FleetStatus()

    async def run(self, host: str, port: int) -> None:
        """For ever; ``host`` and ``port`` are where this gateway listens."""
        self.address = join_address(host, port)
        await asyncio.gather(EpochWatch(self.controller, self.seat).run(self._on_epoch), self._keep_seat(host, port))

    async def missing(self) -> str:
        """Why no chat would be answered, in one line; empty when one would."""
        if self.state != "ready":
            return f"this gateway is {self.state}"
        if self.epoch is None:
            return f"the controller {self.controller} has published no epoch yet"
        if not self.epoch.complete:
            try:
                told = (await self.status()).missing
            except FleetError:
                told = ""
            return told or f"epoch {self.epoch.id} is not complete"
        workers = self._backend.workers
        problems = await asyncio.gather(*map(_problem, workers))
        if "" in problems:
            return ""
        return "; ".join(problems) or f"epoch {self.epoch.id} has no attention worker"

    async def status(self) -> pb.FleetStatus:
        """What the controller says now; raises FleetError while it is away."""
        self._last_status = await self._call("Status", pb.StatusRequest())
        return self._last_status

    async def scale(self, request: pb.ScaleRequest) -> pb.ScaleReply:
        """What is wanted from now on. Raises FleetError: the controller's refusal, or its absence."""
        reply: pb.ScaleReply = await self._call("Scale", request)
        return reply

    @property
    def last_status(self) -> pb.FleetStatus:
        """What the controller said last."""
        return self._last_status

    async def _call(self, method: str, request: Any) -> Any:
        if self._channel is None:
            self._channel = open_channel(self.controller)
        try:
            return await getattr(rpc.MembershipStub(self._channel), method)(request, timeout=_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise from_call(error) from error

    def report(self) -> pb.WorkerReport:
        epoch = self.epoch.id.to_proto() if self.epoch is not None else None
        return pb.WorkerReport(
            seat=self.seat, state=self.state, epoch=epoch, tokens=self._num_delivered(), pid=os.getpid()
        )

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close()

    def _on_epoch(self, epoch: Epoch) -> None:
        self.epoch = epoch
        self._backend.update(epoch)
        _log.info(
            "epoch %s: %d attention workers, %s",
            epoch.id,
            len(epoch.attention),
            "complete" if epoch.complete else "not complete",
        )

    async def _keep_seat(self, host: str, port: int) -> None:
        """A refused seat is no reason to stop answering: it is tried again. A controller whose name is not known yet is away.

        But one that was never accepted ends at a token that is not the fleet's: it could answer nobody.
        """
        keeper = LeaseClient(self.controller, self.seat)
        try:
            while True:
                try:
                    if is_every_address(host):  # where others cannot reach it; but what reaches the controller they can
                        self.address = join_address(await asyncio.to_thread(own_host, self.controller), port)
                    await keeper.register(self.address, os.getpid(), socket.gethostname())
                    await keeper.keep(self.report)
                except (FleetError, OSError) as error:
                    if isinstance(error, FleetError) and error.code is Code.UNAUTHENTICATED and not keeper.lease_id:
                        self.refusal = f"cluster_token: the controller at {self.controller} refuses it ({error})"
                        self.refused.set()
                        return
                    _log.warning("%s: no seat at %s: %s", self.seat, self.controller, error)
                await asyncio.sleep(_RETRY_S)
        finally:
            await keeper.close()


async def _problem(worker: Worker) -> str:
    try:
        report = await worker.describe()
    except FleetError as error:
        return f"{worker.seat} does not answer: {error}"
    return "" if report.state == "ready" else f"{worker.seat} is {report.state or 'in no state'}"
