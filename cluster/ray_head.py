"""A private Ray head on this machine, and the supervision of its one single point: ``gcs_server``.

Knows nothing of actors. 1. ``start`` runs ``ray start --head`` below the guard and reads the address;
2. ``gcs_server``'s command line and environment are taken from /proc; 3. ``supervise`` starts it again, at the same port
and on the same RocksDB folder, as soon as it is gone: raylets, actors and drivers reconnect and keep their pids.
"""

import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from .errors import ClusterError
from .guard import descendants
from .launcher import Launcher
from .ray_settings import RaySettings

_log = logging.getLogger(__name__)
_START_S = 120.0
_PORT_FLAG = "--gcs_server_port="


class RayHead:
    def __init__(self, settings: RaySettings, launcher: Launcher) -> None:
        self.settings = settings
        self.address = ""
        self.gcs_pid = 0
        self.raylet_pid = 0
        self._launcher = launcher
        self._gcs_argv: list[str] = []
        self._gcs_env: dict[str, str] = {}

    def start(self, environ: Mapping[str, str], wait_until: Callable[[Callable[[], bool], float], bool]) -> None:
        """``wait_until(condition, timeout_s)`` does the waiting, so that a signal can end it."""
        (self.settings.run_dir / "gcs").mkdir()
        command = self.settings.start_command(sys.executable)
        starter = self._launcher.spawn(command, self.settings.environment(environ), "ray-start")
        came = wait_until(lambda: starter in self._launcher.exited, _START_S)
        status = self._launcher.exited.get(starter)
        if status != 0:
            reason = "; ".join(self._launcher.last_lines("ray-start")) or "no output"
            ended = f"ended with status {status}" if came else f"did not come up within {_START_S:g} s"
            raise ClusterError(f"Ray's head {ended}: {reason}")
        self.address = (self.settings.run_dir / "ray" / "ray_current_cluster").read_text().strip()
        self._find_daemons()

    def supervise(self) -> bool:
        """Starts gcs_server again if it is gone; True when it had to. A raylet cannot be replaced."""
        if self.raylet_pid in self._launcher.exited:
            raise ClusterError("Ray's node process (raylet) ended, and every worker with it; start the fleet again")
        if self.gcs_pid not in self._launcher.exited:
            return False
        self.gcs_pid = self._launcher.spawn(self._gcs_argv, self._gcs_env, "gcs_server")
        _log.warning("gcs_server was gone, started it again as pid %d", self.gcs_pid)
        return True

    def _find_daemons(self) -> None:
        named = {Path(argv[0]).name: pid for pid, argv in self._command_lines()}
        if not {"gcs_server", "raylet"} <= named.keys():
            raise ClusterError(f"Ray's head came up without its daemons, only with {', '.join(sorted(named))}")
        self.gcs_pid, self.raylet_pid = named["gcs_server"], named["raylet"]
        port = self.address.rpartition(":")[2]
        argv = _read_list(self.gcs_pid, "cmdline")
        self._gcs_argv = [f"{_PORT_FLAG}{port}" if word.startswith(_PORT_FLAG) else word for word in argv]
        self._gcs_env = dict(pair.split("=", 1) for pair in _read_list(self.gcs_pid, "environ") if "=" in pair)

    def _command_lines(self) -> list[tuple[int, list[str]]]:
        return [(pid, _read_list(pid, "cmdline")) for pid in descendants(self._launcher.guard_pid)]


def _read_list(pid: int, name: str) -> list[str]:
    try:
        return os.fsdecode(Path("/proc", str(pid), name).read_bytes()).rstrip("\0").split("\0")
    except OSError:
        return [""]
