"""A fleet under test whose expert shards are on machines of their own: plain processes without Ray, joined by a network.

Knows nothing of loads and steps. Controller, attention workers and gateway are where the network's bridge is.
"""

import asyncio
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

from .fleet import FleetError, Observed, clean_environment, seats
from .network import Network
from .plan import FleetSize

_CONTROLLER = Path(__file__).with_name("controller.py")
_END_S = 60.0


class Machines(Observed):
    def __init__(self, model: Path, size: FleetSize, network: Network, tmp: Path) -> None:
        super().__init__()
        self._model, self._size, self._network, self._tmp = str(model), size, network, tmp
        self._environ = clean_environment() | {
            "EXPERTFLEET_CLUSTER_TOKEN": secrets.token_hex(16),
            "OMP_WAIT_POLICY": "passive",
        }
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    async def wait_ready(self, within_s: float) -> None:
        give_up = time.monotonic() + within_s
        size, network = self._size, self._network
        sizes = (str(size.expert_shards), str(size.replicas))
        self._start("controller", sys.executable, str(_CONTROLLER), self._model, network.address, *sizes)
        controller = await self._said("controller", "listening", give_up)
        for number in range(size.expert_shards):
            seat = f"expert-{number}"
            flags = ("--seat", seat, "--controller", controller, "--host", network.machine(number))
            self._start(seat, *network.command(number, *self._role("expert_workers", *flags)))
        for number in range(size.attention_workers):
            seat = f"attention-{number}"
            flags = ("--seat", seat, "--controller", controller, "--host", network.address)
            self._start(seat, *self._role("attention_workers", *flags))
        self._start("gateway-0", *self._role("gateway", "--controller", controller, "--port", "0"))
        self.url = await self._said("gateway-0", "gateway", give_up)
        await self.find_admin()
        while not await self._is_ready():
            self._check(give_up)
            await asyncio.sleep(0.1)

    async def end(self) -> list[str]:
        """What is wrong with the processes' ends after SIGTERM, those first that others do not need."""
        wrong = []
        for name, process in reversed(self._running.items()):
            process.send_signal(signal.SIGTERM)
            try:
                if status := await asyncio.to_thread(process.wait, _END_S):
                    wrong.append(f"{name} ended with status {status}: {self._last_line(name)}")
            except subprocess.TimeoutExpired:
                wrong.append(f"{name} had not ended {_END_S:g} s after SIGTERM: {self._last_line(name)}")
        return wrong

    async def close(self) -> None:
        await super().close()
        for process in self._running.values():
            process.kill()
            process.wait()

    def _role(self, role: str, *flags: str) -> list[str]:
        return [sys.executable, "-m", f"expertfleet.{role}", "--model", self._model, *flags]

    def _start(self, name: str, *command: str) -> None:
        with self._log(name).open("wb") as log:
            self._running[name] = subprocess.Popen(command, stdout=log, stderr=log, env=self._environ)

    async def _said(self, name: str, word: str, give_up: float) -> str:
        """What follows ``word`` on a line of that process."""
        while True:
            for line in self._log(name).read_text(errors="replace").splitlines():
                if line.startswith(f"{word} "):
                    return line.split()[1]
            self._check(give_up)
            await asyncio.sleep(0.05)

    async def _is_ready(self) -> bool:
        status = await self.status()
        return status is not None and status["ready"] and all(one["state"] == "ready" for one in seats(status))

    def _check(self, give_up: float) -> None:
        for name, process in self._running.items():
            if process.poll() is not None:
                raise FleetError(f"{name} ended with status {process.returncode}: {self._last_line(name)}")
        if time.monotonic() > give_up:
            raise FleetError(f"the machines were not ready in time: {self._last_line('controller')}")

    def _log(self, name: str) -> Path:
        return self._tmp / f"{name}.log"

    def _last_line(self, name: str) -> str:
        return next(iter(self._log(name).read_text(errors="replace").splitlines()[::-1]), "")
