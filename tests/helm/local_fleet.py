"""A live fleet of this machine in the place of the one that a chart's pods would make: nano-k2 in plain processes, without Ray.

Knows nothing of Kubernetes. ``scale`` is what the pods of a StatefulSet do when its number changes: new ones offer their seats, those of
the highest ordinals have them drained, and end when they are told to.
"""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from expertfleet.checkpoint.files import CheckpointFiles
from expertfleet.cluster.controller import Controller
from expertfleet.cluster.controller_thread import ControllerThread
from expertfleet.cluster.membership_client import MembershipClient
from expertfleet.cluster.plan import fleet_shape
from expertfleet.cluster.wanted import Wanted
from expertfleet.demo.bundled import NANO_K2

_READY_S = 240.0
_END_S = 60.0


class LocalFleet:
    def __init__(self, folder: Path, num_shards: int) -> None:
        self._folder = folder
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        with CheckpointFiles.open(NANO_K2) as checkpoint:
            shape = fleet_shape(checkpoint, "bfloat16")
        self._controller = ControllerThread(Controller(shape, Wanted((), (), 2.0), seats_are_offered=True))
        self._num_shards = 0
        self.scale(num_shards)
        self._controller.call(self._controller.controller.offer(["attention-0"]))
        self._start("attention_workers", "attention-0", "--max-model-len=1024", "--cache-gib=0.1", "--threads=1")
        self._start("gateway", "gateway-0", "--port=0", "--served-model-name", "nano-k2")

    def wait_ready(self) -> None:
        self._until(lambda: bool(self._urls()))
        self.url, self.admin_url = self._urls()
        self._until(lambda: httpx.get(f"{self.url}/ready", timeout=30, trust_env=False).status_code == 200)

    def scale(self, num_shards: int) -> None:
        """Returns at once, as Kubernetes does."""
        new = [f"expert-{ordinal}" for ordinal in range(self._num_shards, num_shards)]
        self._controller.call(self._controller.controller.offer(new))
        for seat in new:
            self._start("expert_workers", seat, "--memory-gib=0.25", "--threads=1", "--drain-s=1")
        for ordinal in range(num_shards, self._num_shards):
            with MembershipClient(self._controller.controller.address) as controller:
                controller.drain(f"expert-{ordinal}")
        self._num_shards = num_shards

    def end(self) -> None:
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(_END_S)
        self._controller.stop()

    def _urls(self) -> tuple[str, ...]:
        found = re.search(r"^gateway (\S+) admin (\S+)$", self._log("gateway-0").read_text(), re.MULTILINE)
        return found.groups() if found is not None else ()

    def _until(self, is_so: Callable[[], bool]) -> None:
        give_up = time.monotonic() + _READY_S
        while True:
            with contextlib.suppress(httpx.TransportError):
                if is_so():
                    return
            for name, process in self._processes.items():
                assert process.poll() is None, f"{name} has ended: {self._log(name).read_text()[-2000:]}"
            assert time.monotonic() < give_up, f"not ready within {_READY_S:g} s"
            time.sleep(0.2)

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def _start(self, role: str, seat: str, *flags: str) -> None:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("EXPERTFLEET_")}
        where = (f"--seat={seat}", f"--controller={self._controller.controller.address}", f"--model={NANO_K2}")
        with self._log(seat).open("wb") as log:
            self._processes[seat] = subprocess.Popen(
                [sys.executable, "-m", f"expertfleet.{role}", *where, *flags],
                stdout=log,
                stderr=log,
                env=environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"},
                start_new_session=True,
            )
