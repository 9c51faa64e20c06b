"""A live fleet of this machine in the place of the one that a chart's pods would make: nano-k2 in plain processes, without Ray.

Knows nothing of Kubernetes. ``scale`` is what the pods of a StatefulSet do when its number changes: new ones offer their seats, those of
the highest ordinals have them drained, and end when they are told to.
"""

import os
import re
import signal
import sys

import httpx
from fleet_process import RoleProcess, plain_environment
from until import until

from expertfleet.checkpoint.files import CheckpointFiles
from expertfleet.cluster.commands.resource_plan import fleet_shape
from expertfleet.cluster.controller.controller import Controller
from expertfleet.cluster.controller.controller_thread import ControllerThread
from expertfleet.cluster.controller.desired_state import DesiredState
from expertfleet.demo.bundled import NANO_K2
from expertfleet.membership.client import MembershipClient

_READY_S = 240.0


class LocalFleet:
    def __init__(self, num_shards: int) -> None:
        self._processes: dict[str, RoleProcess] = {}
        with CheckpointFiles.open(NANO_K2) as checkpoint:
            shape = fleet_shape(checkpoint, "bfloat16")
        self._controller = ControllerThread(Controller(shape, DesiredState((), (), 2.0), seats_are_offered=True))
        self._num_shards = 0
        self.scale(num_shards)
        self._controller.call(self._controller.controller.offer({"attention-0": "a"}))
        self._start("attention_workers", "attention-0", "--max-model-len=1024", "--cache-gib=0.1", "--threads=1")
        self._start("gateway", "gateway-0", "--port=0", "--served-model-name", "nano-k2")

    def wait_ready(self) -> None:
        gateway = self._processes["gateway-0"]
        gateway.wait_until(lambda: self._urls(gateway), _READY_S)
        self.url, self.admin_url = self._urls(gateway)

        def ready() -> bool:
            for process in self._processes.values():
                assert process.is_running, "".join(process.lines)
            return httpx.get(f"{self.url}/ready", timeout=30, trust_env=False).status_code == 200

        until(ready, _READY_S)

    def scale(self, num_shards: int) -> None:
        """Returns at once, as Kubernetes does."""
        new = [f"expert-{ordinal}" for ordinal in range(self._num_shards, num_shards)]
        self._controller.call(self._controller.controller.offer(dict.fromkeys(new, "a")))
        for seat in new:
            self._start("expert_workers", seat, "--memory-gib=0.25", "--threads=1", "--drain-s=1")
        for ordinal in range(num_shards, self._num_shards):
            with MembershipClient(self._controller.controller.address) as controller:
                controller.drain(f"expert-{ordinal}")
        self._num_shards = num_shards

    def end(self) -> None:
        running = [process for process in self._processes.values() if process.is_running]
        for process in running:
            process.process.send_signal(signal.SIGTERM)
        try:
            for process in running:
                process.process.wait(60)
        finally:
            for process in running:
                process.kill()
            self._controller.stop()

    @staticmethod
    def _urls(gateway: RoleProcess) -> tuple[str, ...]:
        found = re.search(r"^gateway (\S+) admin (\S+)$", "".join(gateway.lines), re.MULTILINE)
        return found.groups() if found is not None else ()

    def _start(self, role: str, seat: str, *flags: str) -> None:
        where = (f"--seat={seat}", f"--controller={self._controller.controller.address}", f"--model={NANO_K2}")
        environ = {**plain_environment(os.environ), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
        self._processes[seat] = RoleProcess([sys.executable, "-m", f"expertfleet.{role}", *where, *flags], environ)
