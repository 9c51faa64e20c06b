"""The Ray actors of a fleet: one class a role, each a shell around a server that needs no Ray.

Knows nothing of placement. A role's code is imported inside the actor's process alone, so the driver needs no torch.
"""

import importlib
import os
import threading
import time
from pathlib import Path
from typing import Any

from ...attention_workers.config import AttentionConfig
from ...checkpoint.checkpoint_headers import Outline
from ...expert_workers.config import ExpertConfig
from ...membership.security import WireSecurity, secure
from ...settings.reader import read_file, resolve
from ..atomic_file import write_whole
from ..controller.budget import Budget
from ..controller.controller import Controller
from ..controller.controller_thread import ControllerThread
from ..controller.desired_state import DesiredState, split_seat
from ..controller.placement_settings import PlacementSettings
from ..controller.seats import FleetShape
from ..controller.stragglers import SlowRule

# Names the file of settings that a node keeps for its worker.
ROLE_FILE = "FLEET_ROLE_FILE"
# Names the node's offer.
OFFER = "FLEET_OFFER"
_POLL_S = 0.5


class _RoleSeat:
    """A worker in the actor's own process; a restarted actor is back at once, its server loads on other threads."""

    server: tuple[str, str]

    def __init__(self, config: Any, offer: str = "") -> None:
        module, name = self.server
        self._server = getattr(importlib.import_module(module, __package__), name)(config, offer)
        self._server.start()

    def ping(self) -> None:
        """Raises RuntimeError with the reason once the worker has failed."""
        if self._server.failure:
            raise RuntimeError(self._server.failure)

    def address(self) -> str:
        return str(self._server.address)

    def drain(self, timeout_s: float) -> bool:
        return bool(self._server.stop(timeout_s))


class ExpertSeat(_RoleSeat):
    server = ("..expert_workers.server", "ExpertServer")


class AttentionSeat(_RoleSeat):
    server = ("..attention_workers.server", "AttentionServer")


ROLES: dict[str, tuple[type, type[_RoleSeat]]] = {
    "expert": (ExpertConfig, ExpertSeat),
    "attention": (AttentionConfig, AttentionSeat),
}


class NodeSeat(_RoleSeat):
    """The worker that a node is there for; who hires it knows nothing but its seat."""

    def __init__(self) -> None:
        path = Path(os.environ[ROLE_FILE])
        values = read_file(path)
        config, role = ROLES[split_seat(values["seat"])[0]]
        self.server = role.server
        try:
            settings: Any = resolve(config, flags={}, environ={}, file=values, file_name=str(path))
            super().__init__(settings, os.environ[OFFER])
        except (OSError, ValueError) as error:
            _tell(failure_file(path), error)
            raise
        threading.Thread(target=self._watch, args=(failure_file(path),), daemon=True).start()

    def _watch(self, failure: Path) -> None:
        """For the node, which ends with the reason; a controller that refused the worker does not know of it."""
        while True:
            time.sleep(_POLL_S)
            try:
                self.ping()
            except RuntimeError as error:
                _tell(failure, error)
                return


def _tell(failure: Path, error: Exception) -> None:
    write_whole(failure, " ".join(str(error).split()) or type(error).__name__)


def failure_file(role_file: Path) -> Path:
    """Where a worker says why it cannot work."""
    return role_file.with_suffix(".failed")


class ControllerSeat:
    """The controller in an actor's process; a restarted one binds the same port."""

    def __init__(
        self,
        shape: FleetShape,
        wanted: DesiredState,
        host: str,
        port: int,
        state_file: Path,
        slow: SlowRule,
        security: WireSecurity,
        outline: Outline,
        placing: PlacementSettings,
        budget: Budget,
    ) -> None:
        secure(security)
        self._thread = ControllerThread(
            Controller(
                shape,
                wanted,
                host,
                port,
                state_file=state_file,
                slow=slow,
                outline=outline,
                placing=placing,
                budget=budget,
            )
        )

    def ping(self) -> None:
        return None

    def address(self) -> str:
        return self._thread.controller.address

    def drain(self, timeout_s: float) -> bool:
        self._thread.stop()
        return True
