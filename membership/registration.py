"""A worker's standing in the fleet: its state, what it reports, the lease on its seat, and the orders that come with it.

Knows nothing of what the worker computes. 1. ``take`` registers, starts reporting and follows orders; 2. ``enter`` changes the state
and reports at once; 3. ``close`` ends the reports, so that the lease runs out. Without a controller the worker only keeps its
state for ``Describe``.
"""

import asyncio
import concurrent.futures
import logging
import os
import socket
from collections.abc import Callable, Coroutine
from typing import Any, Literal

from ..proto.errors import FleetError
from ..proto.generated import membership_pb2 as pb
from ..transport.io_thread import IoThread
from .lease_client import LeaseClient

logger = logging.getLogger(__name__)

State = Literal["starting", "loading", "ready", "leaving", "draining", "failed"]


class Registration:
    """One worker process at one seat; methods may be called from any thread but the IO thread's own.

    ``on_order`` is called on the IO thread; who is refused is told to leave, as nobody will ever ask it for anything.
    """

    def __init__(
        self,
        io: IoThread,
        seat: str,
        controller: str | None,
        fill: Callable[[pb.WorkerReport], None],
        on_order: Callable[[pb.Order], None],
        node: str = "",
        offer: str = "",
    ) -> None:
        """``offer``: of the node that the process was started for."""
        self.seat = seat
        self.state: State = "starting"
        self.error = ""
        self.node = node or socket.gethostname()
        self._offer = offer
        self._io = io
        self._fill = fill
        self._on_order = on_order
        self._keeper = LeaseClient(controller, seat) if controller else None
        self._registered = False
        self._leaving = False
        self._taking: asyncio.Task[pb.RegisterReply] | None = None
        self._keeping: list[asyncio.Task[None]] = []

    def report(self) -> pb.WorkerReport:
        """The worker in one message; called on the IO thread by ``Describe`` and for every lease renewal."""
        report = pb.WorkerReport(seat=self.seat, state=self.state, error=self.error, pid=os.getpid())
        self._fill(report)
        return report

    def take(self, address: str, fingerprint: str, dtype: str, capacity: int = 0) -> None:
        """Registers, keeps the lease and follows its orders from now on; nothing of that without a controller.

        Raises FleetError when refused, and InterruptedError after ``give_up``.
        """
        if self._keeper is None:
            return
        register = self._keeper.register(
            address, os.getpid(), self.node, fingerprint, dtype, capacity=capacity, offer=self._offer
        )
        try:
            self._io.submit(self._take(register))
        except concurrent.futures.CancelledError:
            raise InterruptedError(f"{self.seat} leaves before it registered") from None
        except FleetError:
            self._io.post(self._on_order, pb.Order(leave=True))
            raise
        self._registered = True
        self._io.post(self._start_keeping, self._keeper)

    @property
    def failure(self) -> str:
        """Why the worker cannot work; empty while it can."""
        return self.error if self.state == "failed" else ""

    @property
    def has_controller(self) -> bool:
        return self._keeper is not None

    def give_up(self) -> None:
        """Ends a ``take`` that still waits for the controller."""
        self._io.post(self._give_up)

    def enter(self, state: State, error: str = "") -> None:
        if self.state == "failed":
            return
        self.state, self.error = state, error
        logger.log(logging.ERROR if error else logging.INFO, "%s: %s%s", self.seat, state, error and f": {error}")
        if self._keeper is not None and self._registered:
            self._io.submit(self._report_now(self._keeper))

    def close(self) -> None:
        if self._keeper is not None:
            self._io.submit(self._close(self._keeper))

    def report_soon(self) -> None:
        """One report out of turn."""
        if self._keeper is not None and self._registered:
            self._io.spawn(self._report_now(self._keeper))

    async def _report_now(self, keeper: LeaseClient) -> None:
        try:
            await keeper.report(self.report())
        except FleetError as refusal:
            self._refused(refusal)

    async def _take(self, register: Coroutine[Any, Any, pb.RegisterReply]) -> None:
        self._taking = taking = asyncio.get_running_loop().create_task(register)
        if self._leaving:
            taking.cancel()
        await taking

    def _give_up(self) -> None:
        self._leaving = True
        if self._taking is not None:
            self._taking.cancel()

    async def _close(self, keeper: LeaseClient) -> None:
        for task in self._keeping:
            task.cancel()
        await asyncio.gather(*self._keeping, return_exceptions=True)
        await keeper.close()

    def _start_keeping(self, keeper: LeaseClient) -> None:
        loop = self._io.loop
        self._keeping = [loop.create_task(self._keep(keeper)), loop.create_task(keeper.follow(self._on_order))]

    async def _keep(self, keeper: LeaseClient) -> None:
        try:
            await keeper.keep(self.report)
        except FleetError as error:
            self._refused(error)

    def _refused(self, error: FleetError) -> None:
        self.state, self.error = "failed", f"the controller no longer accepts {self.seat}: {error}"
        logger.error("%s", self.error)
        self._on_order(pb.Order(leave=True))
