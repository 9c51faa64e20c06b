"""Following the controller's epochs.

Knows nothing of what an epoch is used for. 1. Open the stream; 2. hand on each epoch newer than the last; 3. when the
stream breaks, open it again. While the controller is away the last epoch simply stays in force.
"""

import asyncio
import logging
from collections.abc import Callable

import grpc

from ..proto.errors import FleetError, from_call
from ..proto.generated import membership_pb2 as pb
from ..proto.generated import membership_pb2_grpc as rpc
from .channel import open_channel
from .epoch import NO_EPOCH, Epoch

_log = logging.getLogger(__name__)
_MAX_BACKOFF_S = 1.0


class EpochWatch:
    """One watcher of one controller; ``run`` belongs to one event loop."""

    def __init__(self, controller: str, seat: str) -> None:
        self.controller = controller
        self.seat = seat
        self.last = NO_EPOCH

    async def run(self, on_epoch: Callable[[Epoch], None]) -> None:
        """For ever; ``on_epoch`` is called on this loop with ever newer epochs, never with an older one."""
        backoff_s = 0.1
        async with open_channel(self.controller) as channel:
            while True:
                before = self.last
                try:
                    await self._follow(rpc.MembershipStub(channel), on_epoch)
                    _log.info("%s: controller %s ended the watch", self.seat, self.controller)
                except grpc.aio.AioRpcError as error:
                    _log.info("%s: watch broke, trying again: %s", self.seat, from_call(error))
                backoff_s = 0.1 if self.last > before else min(_MAX_BACKOFF_S, backoff_s * 2)
                await asyncio.sleep(backoff_s)

    async def _follow(self, stub: rpc.MembershipStub, on_epoch: Callable[[Epoch], None]) -> None:
        async for message in stub.Watch(pb.WatchRequest(seat=self.seat)):
            try:
                epoch = Epoch.from_proto(message)
            except FleetError as error:
                _log.error("%s: the controller sent an unusable epoch, keeping the last one: %s", self.seat, error)
                continue
            if epoch.id > self.last:
                self.last = epoch.id
                on_epoch(epoch)
