"""The Ray actors of a fleet: one class a role, each a shell around a server that needs no Ray.

Knows nothing of placement. A role's code is imported inside the actor's process alone, so the driver needs no torch.
"""

import asyncio
import importlib
import threading
from pathlib import Path
from typing import Any, ClassVar

from ..membership.wire import WireSecurity, secure
from .controller import Controller
from .seats import FleetShape
from .wanted import Wanted

_START_S = 30.0


class _RoleSeat:
    """A worker in the actor's own process; a restarted actor is back at once, its server loads on other threads."""

    server: ClassVar[tuple[str, str]]

    def __init__(self, config: Any) -> None:
        module, name = self.server
        self._server = getattr(importlib.import_module(module, __package__), name)(config)
        self._server.start()

    def ping(self) -> None:
        """Raises RuntimeError with the reason once the worker has failed."""
        if self._server.tenancy.state == "failed":
            raise RuntimeError(self._server.tenancy.error)

    def address(self) -> str:
        return str(self._server.address)

    def drain(self, timeout_s: float) -> bool:
        return bool(self._server.stop(timeout_s))


class ExpertSeat(_RoleSeat):
    server = ("..expert_workers.server", "ExpertServer")


class AttentionSeat(_RoleSeat):
    server = ("..attention_workers.server", "AttentionServer")


class ControllerSeat:
    """The controller on a thread and loop of its own; a restarted one binds the same port."""

    def __init__(
        self, shape: FleetShape, wanted: Wanted, host: str, port: int, state_file: Path | None, security: WireSecurity
    ) -> None:
        secure(security)
        self._controller = Controller(shape, wanted, host, port, state_file=state_file)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="controller", daemon=True).start()
        self._on_loop(self._controller.start())

    def ping(self) -> None:
        return None

    def address(self) -> str:
        return self._controller.address

    def drain(self, timeout_s: float) -> bool:
        self._on_loop(self._controller.stop())
        return True

    def _on_loop(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(_START_S)
