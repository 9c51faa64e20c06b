"""A worker's standing in the fleet: its state, what it reports, and the lease on its seat.

Knows nothing of what the worker computes. 1. ``take`` registers and starts reporting; 2. ``enter`` changes the state and
reports at once; 3. ``close`` gives the lease up. Without a controller the worker only keeps its state for ``Describe``.
"""

import logging
import os
import socket
from collections.abc import Callable
from typing import Literal

from ..proto.errors import FleetError
from ..proto.generated import membership_pb2 as pb
from ..proto.io_thread import IoThread
from .epoch import ExpertSet
from .seat import SeatKeeper

logger = logging.getLogger(__name__)

State = Literal["starting", "loading", "ready", "draining", "failed"]


class Tenancy:
    """One worker process at one seat; methods may be called from any thread but the IO thread's own."""

    def __init__(
        self, io: IoThread, seat: str, controller: str | None, fill: Callable[[pb.WorkerReport], None], node: str = ""
    ) -> None:
        self.seat = seat
        self.state: State = "starting"
        self.error = ""
        self.node = node or socket.gethostname()
        self._io = io
        self._fill = fill
        self._keeper = SeatKeeper(controller, seat) if controller else None
        self._registered = False

    def report(self) -> pb.WorkerReport:
        """The worker in one message; called on the IO thread by ``Describe`` and for every lease renewal."""
        report = pb.WorkerReport(seat=self.seat, state=self.state, error=self.error, pid=os.getpid())
        self._fill(report)
        return report

    def take(
        self, address: str, fingerprint: str, dtype: str, held: ExpertSet | None = None
    ) -> pb.RegisterReply | None:
        """Registers and keeps the lease from now on; None without a controller. Raises FleetError when refused."""
        if self._keeper is None:
            return None
        reply = self._io.submit(self._keeper.register(address, os.getpid(), self.node, fingerprint, dtype, held))
        self._registered = True
        self._io.post(self._start_keeping)
        return reply

    def enter(self, state: State, error: str = "") -> None:
        if self.state == "failed":
            return
        self.state, self.error = state, error
        logger.log(logging.ERROR if error else logging.INFO, "%s: %s%s", self.seat, state, error and f": {error}")
        if self._keeper is not None and self._registered:
            self._io.submit(self._keeper.report(self.report()))

    def close(self) -> None:
        if self._keeper is not None:
            self._io.submit(self._keeper.close())

    def _start_keeping(self) -> None:
        self._keeping = self._io.loop.create_task(self._keep())

    async def _keep(self) -> None:
        assert self._keeper is not None
        try:
            await self._keeper.keep(self.report)
        except FleetError as error:
            self.state, self.error = "failed", f"the controller no longer accepts {self.seat}: {error}"
            logger.error("%s", self.error)
