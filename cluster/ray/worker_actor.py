"""The Ray actor of a worker: a shell around a server that needs no Ray.

The actor knows nothing of placement: it reads its settings from the file that its node keeps for its seat. A role's code is imported
inside the actor's process alone, so a driver needs no torch.
"""

import importlib
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...attention_workers.config import AttentionConfig
from ...expert_workers.config import ExpertConfig
from ...settings.reader import read_file, resolve
from ..atomic_file import write_whole
from ..controller.desired_state import split_seat

# Names the folder of settings that a node keeps for its workers.
WORKERS_DIR = "FLEET_WORKERS_DIR"
_FAILED = ".failed"
_POLL_S = 0.5

CONFIGS: Mapping[str, type[ExpertConfig] | type[AttentionConfig]] = {
    "expert": ExpertConfig,
    "attention": AttentionConfig,
}
_SERVERS = {
    "expert": ("...expert_workers.server", "ExpertServer"),
    "attention": ("...attention_workers.server", "AttentionServer"),
}


class WorkerActor:
    """A restarted actor is back at once, its server loads on other threads."""

    def __init__(self, seat: str, offer: str) -> None:
        folder = Path(os.environ[WORKERS_DIR])
        self._failure_file = failure_file(folder, seat)
        try:
            self._server = _start_server(folder, seat, offer)
        except Exception as error:
            self._record_failure(error)
            raise
        threading.Thread(target=self._watch, daemon=True).start()

    def ping(self) -> None:
        """Returns once the actor has been made."""

    def _watch(self) -> None:
        """Records why the worker failed: a controller that refused the worker does not know of it."""
        while not self._server.failure:
            time.sleep(_POLL_S)
        self._record_failure(RuntimeError(self._server.failure))

    def _record_failure(self, error: Exception) -> None:
        write_whole(self._failure_file, " ".join(str(error).split()) or type(error).__name__)


def settings_file(folder: Path, seat_or_role: str) -> Path:
    """The settings of the worker at a seat, or of all workers of a role whose seat has no file of its own."""
    return folder / f"{seat_or_role}.yaml"


def failure_file(folder: Path, seat: str) -> Path:
    """Where a worker says why it cannot work."""
    return folder / f"{seat}{_FAILED}"


def failures(folder: Path) -> dict[str, str]:
    """By seat, why its worker cannot work."""
    return {path.stem: path.read_text() for path in folder.glob(f"*{_FAILED}")}


def _start_server(folder: Path, seat: str, offer: str) -> Any:
    role, _ = split_seat(seat)
    own, shared = settings_file(folder, seat), settings_file(folder, role)
    path = own if own.exists() else shared
    values = {**read_file(path), "seat": seat}
    config = resolve(CONFIGS[role], flags={}, environ={}, file=values, file_name=str(path))
    module, name = _SERVERS[role]
    server = getattr(importlib.import_module(module, __package__), name)(config, offer)
    server.start()
    return server
