"""One process of a fleet, its output collected, and an end of it and of everything below it."""

import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from until import until

from expertfleet.cluster.ray.process_reaper import alive, descendants


class RoleProcess:
    def __init__(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        """``environ`` without what would be a setting of Ray or of this fleet, where it is not meant."""
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environ, start_new_session=True
        )
        self.lines: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def pids(self) -> set[int]:
        return {self.process.pid, *descendants(self.process.pid)}

    def wait_until(self, condition: Callable[[], Any], timeout_s: float) -> None:
        """While it runs; what it said is shown if it ends, or time runs out."""

        def holds() -> Any:
            assert self.is_running, "".join(self.lines)
            return condition()

        until(holds, timeout_s, "".join(self.lines[-5:]))

    def wait_for(self, text: str, timeout_s: float = 120.0) -> None:
        self.wait_until(lambda: any(text in line for line in self.lines), timeout_s)

    def end(self, number: int = signal.SIGTERM, timeout_s: float = 60.0) -> int:
        """Its status; nothing that it started is left."""
        below = descendants(self.process.pid)
        self.process.send_signal(number)
        status = self.process.wait(timeout_s)
        until(lambda: not any(map(alive, below)), 30)
        return status

    def kill(self) -> None:
        if self.is_running:
            self.end(signal.SIGKILL)

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            self.lines.extend(lines)


def plain_environment(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if not name.startswith(("RAY_", "EXPERTFLEET_"))}
