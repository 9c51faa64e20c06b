"""A role as a plain process, ``python -m expertfleet.ROLE``: started, listening, ended.

Knows nothing of what the role does and of what is measured.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

_ENDS_WITHIN_S = 60


class RoleProcess:
    """Its output goes to ``log``; ``before`` is put in front of the command."""

    def __init__(
        self, role: str, flags: Sequence[object], log: Path, environ: Mapping[str, str], before: Sequence[str] = ()
    ) -> None:
        self._role, self._log = role, log
        command = [*before, sys.executable, "-m", f"expertfleet.{role}", *map(str, flags)]
        with log.open("wb") as output:
            self._popen = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=os.environ | environ)

    @property
    def pid(self) -> int:
        return self._popen.pid

    def address(self) -> str:
        """Waits until it listens; ends the program if the process ends first."""
        while True:
            ended = self._popen.poll() is not None
            lines = self._log.read_text(errors="replace").splitlines()
            for line in lines:
                if line.startswith("listening "):
                    return line.removeprefix("listening ")
            if ended:
                sys.exit("\n".join([f"{self._role} ended with status {self._popen.returncode}", *lines]))
            time.sleep(0.1)

    def stop(self) -> None:
        """Asks it to end."""
        self._popen.send_signal(signal.SIGTERM)

    def wait(self) -> None:
        self._popen.wait(_ENDS_WITHIN_S)


class Roles:
    """Starts processes that share a folder of logs and an environment; all of them end with ``roles``."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        self._folder, self._environ = folder, environ
        self.running: list[RoleProcess] = []

    def start(self, role: str, *flags: object, before: Sequence[str] = ()) -> RoleProcess:
        log = self._folder / f"{len(self.running)}-{role}.log"
        self.running.append(RoleProcess(role, flags, log, self._environ, before))
        return self.running[-1]


@contextlib.contextmanager
def roles(folder: Path, **environ: str) -> Iterator[Roles]:
    """Processes of plain roles; torch's threads do not spin while they wait, as the fleet's do not."""
    started = Roles(folder, {"OMP_WAIT_POLICY": "passive", **environ})
    try:
        yield started
    finally:
        for process in started.running:
            process.stop()
        for process in started.running:
            process.wait()
