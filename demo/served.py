"""``expertfleet serve`` as a child process of the demonstration: started, waited for, ended, and looked after.

Knows nothing of what is asked of it. It runs in a temporary folder of its own, so that anything left behind is seen.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from ..cluster.ray.process_reaper import alive, descendants

_READY_S = 120.0
_END_S = 40.0


class Served:
    def __init__(self, model: Path, tmp: Path, *flags: str) -> None:
        self._tmp = tmp
        command = [sys.executable, "-m", "expertfleet.cluster", "serve", str(model), "--port=0", *flags]
        environment = {**os.environ, "TMPDIR": str(tmp)}
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        self._line = ""
        threading.Thread(target=self._read, daemon=True).start()

    def wait_ready(self) -> str:
        """The URL of the API."""
        give_up = time.monotonic() + _READY_S
        while not self._line:
            if self._process.poll() is not None:
                raise SystemExit(f"demo: serve ended with status {self._process.returncode} before it was ready")
            if time.monotonic() > give_up:
                raise SystemExit(f"demo: serve was not ready within {_READY_S:g} s")
            time.sleep(0.05)
        return self._line.removeprefix("ready ").strip()

    def end(self) -> tuple[int, list[str]]:
        """The exit status after SIGTERM, and what is left of the run."""
        pids = descendants(self._process.pid)
        self._process.send_signal(signal.SIGTERM)
        status = self._process.wait(_END_S)
        left = [f"process {pid}" for pid in pids if alive(pid)]
        return status, left + [str(path) for path in self._tmp.iterdir()]

    def kill(self) -> None:
        """When the demonstration itself failed; the guard clears up."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(_END_S)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout:
            for line in self._process.stdout:
                self._line = self._line or line
