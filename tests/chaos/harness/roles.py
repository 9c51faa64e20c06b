"""A fleet under test of processes that the test starts itself, each with its output in a file.

Knows nothing of what they are.
"""

import asyncio
import secrets
import signal
import subprocess
import time
from pathlib import Path

from .fleet import FleetError, Observed, clean_environment, picture, seats

_END_S = 60.0


class Roles(Observed):
    def __init__(self, tmp: Path) -> None:
        super().__init__()
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self._tmp = tmp
        self.environ = clean_environment() | {
            "EXPERTFLEET_CLUSTER_TOKEN": secrets.token_hex(16),
            "OMP_WAIT_POLICY": "passive",
            "TMPDIR": str(tmp),
        }

    def start(self, name: str, *command: str) -> None:
        with self._log(name).open("ab") as log:
            self.running[name] = subprocess.Popen(command, stdout=log, stderr=log, env=self.environ)

    async def said(self, name: str, word: str, give_up: float) -> str:
        """What follows ``word`` on a line of that process."""
        while True:
            for line in self._log(name).read_text(errors="replace").splitlines():
                if line.startswith(f"{word} "):
                    return line.split()[1]
            self._check(give_up)
            await asyncio.sleep(0.05)

    async def wait_settled(self, num_workers: int, give_up: float) -> None:
        """Until so many workers, the controller and gateways left out, are at rest."""
        while True:
            status = await self.status()
            workers = [one for one in seats(status) if one["role"] in ("expert", "attention")]
            if status is not None and status["settled"] and len(workers) == num_workers:
                return
            self._check(give_up, picture(status))
            await asyncio.sleep(0.1)

    async def end(self) -> list[str]:
        """What is wrong with the processes' ends after SIGTERM, those first that others do not need."""
        wrong = []
        for name, process in reversed(self.running.items()):
            process.send_signal(signal.SIGTERM)
            try:
                if status := await asyncio.to_thread(process.wait, _END_S):
                    wrong.append(f"{name} ended with status {status}: {self._last_line(name)}")
            except subprocess.TimeoutExpired:
                wrong.append(f"{name} had not ended {_END_S:g} s after SIGTERM: {self._last_line(name)}")
        return wrong

    async def close(self) -> None:
        await super().close()
        for process in self.running.values():
            process.kill()
            process.wait()

    def _check(self, give_up: float, reached: str = "") -> None:
        for name, process in self.running.items():
            if process.poll() is not None:
                raise FleetError(f"{name} ended with status {process.returncode}: {self._last_line(name)}")
        if time.monotonic() > give_up:
            raise FleetError(f"the fleet was not ready in time: {reached or self._last_line(next(iter(self.running)))}")

    def _log(self, name: str) -> Path:
        return self._tmp / f"{name}.log"

    def _last_line(self, name: str) -> str:
        return next(iter(self._log(name).read_text(errors="replace").splitlines()[::-1]), "")
