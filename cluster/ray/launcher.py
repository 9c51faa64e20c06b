"""``serve``'s end of the guard: starts processes of this run and hears of their end.

Knows nothing of what they are. Every process starts in a session of its own, so Ctrl-C reaches ``serve`` alone.
"""

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ClusterError
from . import process_reaper

_LONGEST_SOCKET_PATH = 107
_RAY_SOCKET = "/ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store"
_ANSWER_S = 20.0


def make_run_dir() -> Path:
    """A private folder whose socket paths fit into what the kernel allows."""
    longest = _LONGEST_SOCKET_PATH - len(_RAY_SOCKET) - len("/fleet-") - 8
    root = tempfile.gettempdir()
    run_dir = Path(tempfile.mkdtemp(prefix="fleet-", dir=root if len(root) <= longest else "/tmp"))
    (run_dir / "logs").mkdir()
    return run_dir


class Launcher:
    """Owns one guard and the run's folder."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.exited: dict[int, int] = {}
        self._spawned: set[int] = set()
        self._answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._guard = subprocess.Popen(
            [sys.executable, "-m", process_reaper.__name__, str(run_dir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._listener = threading.Thread(target=self._listen, name="guard", daemon=True)
        self._listener.start()

    @property
    def guard_pid(self) -> int:
        return self._guard.pid

    def spawn(self, argv: Sequence[str], env: Mapping[str, str], log: str, warns_here: bool = False) -> int:
        """Starts ``argv`` with its output in the run's ``logs/``, or its standard error on this process's; returns its pid."""
        order = {"spawn": list(argv), "env": dict(env), "log": str(self.log_path(log)), "warns_here": warns_here}
        answer = self._ask(order)
        if "error" in answer:
            raise ClusterError(str(answer["error"]))
        self._spawned.add(int(answer["pid"]))
        return int(answer["pid"])

    def log_path(self, name: str) -> Path:
        return self.run_dir / "logs" / f"{name}.log"

    def check(self) -> None:
        """Raises ClusterError when the guard itself is gone."""
        if self._guard.poll() is not None:
            raise ClusterError(f"the guard process (pid {self._guard.pid}) was ended from outside; so ends the fleet")

    def last_lines(self, log: str, count: int = 1) -> list[str]:
        """The end of a log, empty lines left out."""
        with contextlib.suppress(OSError):
            lines = self.log_path(log).read_text(errors="replace").splitlines()
            return [line.strip() for line in lines if line.strip()][-count:]
        return []

    def terminate(self, pid: int) -> None:
        if pid not in self.exited:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def end(self, timeout_s: float = 20.0) -> list[int]:
        """Kills what is left and removes the folder; returns the pids that had to be killed."""
        killed: list[int] = []
        with contextlib.suppress(ClusterError):
            killed = [int(pid) for pid in self._ask({"end": True})["killed"]]
        assert self._guard.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._guard.stdin.close()
        self._guard.wait(timeout_s)
        self._listener.join(timeout_s)
        return killed if not self.run_dir.exists() else self._end_without_guard()

    def _end_without_guard(self) -> list[int]:
        """The guard's work when it was killed itself: what was spawned here, and what names the run's folder."""
        strays = {*(self._spawned - self.exited.keys()), *process_reaper.naming(str(self.run_dir))}
        for pid in strays:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.run_dir, ignore_errors=True)
        return sorted(strays)

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self._guard.stdin is not None
        try:
            self._guard.stdin.write(json.dumps(order).encode() + b"\n")
            self._guard.stdin.flush()
            return self._answers.get(timeout=_ANSWER_S)
        except (BrokenPipeError, ValueError, queue.Empty) as error:
            raise ClusterError(f"the guard process (pid {self._guard.pid}) is gone") from error

    def _listen(self) -> None:
        assert self._guard.stdout is not None
        with self._guard.stdout:
            for line in self._guard.stdout:
                message = json.loads(line)
                if "exited" in message:
                    self.exited[message["exited"]] = message["status"]
                else:
                    self._answers.put(message)
