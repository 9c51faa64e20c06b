"""One node of Ray below the guard: started, and watched.

Knows nothing of actors.
"""

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from ..errors import ClusterError
from .launcher import Launcher
from .process_reaper import descendants
from .settings import RaySettings

WaitUntil = Callable[[Callable[[], bool], float], bool]
_START_S = 120.0
_LEAVE_S = 10.0


class RayNode:
    daemons: ClassVar[frozenset[str]] = frozenset({"raylet"})

    def __init__(self, settings: RaySettings, launcher: Launcher, command: Sequence[str]) -> None:
        """``command`` is one of those that ``settings`` make."""
        self.settings = settings
        self.raylet_pid = 0
        self._launcher = launcher
        self._command = command

    def start(self, environ: Mapping[str, str], wait_until: WaitUntil) -> None:
        """``wait_until(condition, timeout_s)`` does the waiting, so that a signal can end it."""
        starter = self._launcher.spawn(self._command, self.settings.environment(environ), "ray-start")
        came = wait_until(lambda: starter in self._launcher.exited, _START_S)
        status = self._launcher.exited.get(starter)
        if status != 0:
            reason = "; ".join(self._launcher.last_lines("ray-start")) or "no output"
            ended = f"ended with status {status}" if came else f"did not come up within {_START_S:g} s"
            raise ClusterError(f"Ray's node {ended}: {reason}")
        self._found(self._running())

    def supervise(self) -> bool:
        """Raises ClusterError once the node's own process is gone; True when another one had to be started again."""
        if self.raylet_pid in self._launcher.exited:
            raise ClusterError("Ray's node process (raylet) ended, and every worker with it; start this again")
        return False

    def leave(self, wait_until: WaitUntil) -> None:
        """Has Ray take the node out of the cluster; a head that comes back would take one that was killed for one still there."""
        self._launcher.terminate(self.raylet_pid)
        wait_until(lambda: self.raylet_pid in self._launcher.exited, _LEAVE_S)

    def _found(self, pids: Mapping[str, int]) -> None:
        self.raylet_pid = pids["raylet"]

    def _running(self) -> dict[str, int]:
        """The pid of each daemon."""
        named: dict[str, int] = {}
        for pid in descendants(self._launcher.guard_pid):
            named[program(pid)] = pid
        if not self.daemons <= named.keys():
            raise ClusterError(f"Ray's node came up without its daemons, only with {', '.join(sorted(named))}")
        return named


def program(pid: int) -> str:
    return Path(read_list(pid, "cmdline")[0]).name


def read_list(pid: int, name: str) -> list[str]:
    """``/proc/<pid>/<name>`` where that is a list of words; one empty word for a process that is gone."""
    with contextlib.suppress(OSError):
        return os.fsdecode(Path("/proc", str(pid), name).read_bytes()).rstrip("\0").split("\0")
    return [""]
