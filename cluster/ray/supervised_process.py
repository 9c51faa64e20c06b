"""A process below the guard that is started again when it dies.

The supervisor knows nothing of what the process does: it has a command line, an environment and a log.
"""

import logging
import sys
import time
from collections.abc import Mapping, Sequence

from ..errors import ClusterError
from .launcher import Launcher

_log = logging.getLogger(__name__)
_REST_S = 1.0


class SupervisedProcess:
    def __init__(
        self,
        name: str,
        module: str,
        arguments: Sequence[str],
        environ: Mapping[str, str],
        launcher: Launcher,
        warns_here: bool = False,
    ) -> None:
        """Of a Python ``module``; with ``warns_here`` its standard error is this process's."""
        self.pid = 0
        self._name, self._launcher, self._warns_here = name, launcher, warns_here
        self._command, self._environ = [sys.executable, "-m", module, *arguments], environ
        self._started_at = 0.0

    @property
    def has_ended(self) -> bool:
        return self.pid in self._launcher.exited

    def start(self) -> None:
        self._started_at = time.monotonic()
        self.pid = self._launcher.spawn(self._command, self._environ, self._name, self._warns_here)

    def check_start(self) -> None:
        """Raises ClusterError when the process ended before the fleet was ready."""
        if self.has_ended:
            reason = "; ".join(self._launcher.last_lines(self._name)) or "no output"
            raise ClusterError(f"the {self._name} ended with status {self._launcher.exited[self.pid]}: {reason}")

    def supervise(self) -> bool:
        """Starts it again if it is gone, at most once a second; True when it had to."""
        if not self.has_ended or time.monotonic() - self._started_at < _REST_S:
            return False
        _log.warning("the %s (pid %d) was gone and is started again", self._name, self.pid)
        self.start()
        return True
