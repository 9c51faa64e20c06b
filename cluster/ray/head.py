"""The head node of Ray, and the supervision of its one single point: ``gcs_server``.

Knows nothing of actors. 1. ``start`` runs ``ray start --head`` below the guard and reads the address;
2. ``gcs_server``'s command line and environment are taken from /proc; 3. ``supervise`` starts it again, at the same port
and on the same RocksDB folder, as soon as it is gone: raylets, actors and drivers reconnect and keep their pids. One that was told to
end closes its port and may then wait for its clients for ever: it is ended at once.
"""

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Mapping
from typing import ClassVar

from ...membership.port_probe import listens
from .launcher import Launcher
from .listening import Listening
from .node import RayNode, WaitUntil, program, read_list
from .process_reaper import descendants
from .settings import RaySettings

_log = logging.getLogger(__name__)
_PORT_FLAG = "--gcs_server_port="


class RayHead(RayNode):
    daemons: ClassVar[frozenset[str]] = frozenset({"raylet", "gcs_server"})

    def __init__(self, settings: RaySettings, launcher: Launcher) -> None:
        super().__init__(settings, launcher, settings.head_command(sys.executable))
        self.address = ""
        self.gcs_pid = 0
        self._gcs_argv: list[str] = []
        self._gcs_env: dict[str, str] = {}
        self._listening = Listening(lambda: listens(self.address))

    def start(self, environ: Mapping[str, str], wait_until: WaitUntil) -> None:
        self.settings.gcs_storage.mkdir(parents=True, exist_ok=True)
        super().start(environ, wait_until)

    def supervise(self) -> bool:
        super().supervise()
        if self.gcs_pid not in self._launcher.exited:
            if self._listening.is_deaf():
                _log.warning("gcs_server no longer listens at %s, ending it", self.address)
                self._listening.forget()
                kill_gcs_server(self._launcher.guard_pid)
            return False
        self._listening.forget()
        self.gcs_pid = self._launcher.spawn(self._gcs_argv, self._gcs_env, "gcs_server")
        _log.warning("gcs_server was gone, started it again as pid %d", self.gcs_pid)
        return True

    def _found(self, pids: Mapping[str, int]) -> None:
        super()._found(pids)
        self.gcs_pid = pids["gcs_server"]
        self.address = (self.settings.run_dir / "ray" / "ray_current_cluster").read_text().strip()
        port = self.address.rpartition(":")[2]
        argv = read_list(self.gcs_pid, "cmdline")
        self._gcs_argv = [f"{_PORT_FLAG}{port}" if word.startswith(_PORT_FLAG) else word for word in argv]
        self._gcs_env = dict(pair.split("=", 1) for pair in read_list(self.gcs_pid, "environ") if "=" in pair)


def kill_gcs_server(guard_pid: int) -> None:
    """Has the supervisor start ``gcs_server`` again: one that could not write for a while may never answer again."""
    for pid in descendants(guard_pid):
        if program(pid) == "gcs_server":
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
