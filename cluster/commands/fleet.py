"""One running fleet: the guard, Ray, the actors and the gateway, in the order in which they need each other.

Knows nothing of command lines. 1. ``start`` brings everything up until a completion was answered; 2. ``watch`` keeps it
up; 3. ``drain`` ends it without losing a request; 4. ``end`` leaves nothing behind, whatever happened before.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from ...membership.client import MembershipClient
from ...proto.errors import FleetError
from ...proto.generated import membership_pb2 as pb
from ..errors import ClusterError
from ..ray.head import RayHead
from ..ray.launcher import Launcher, make_run_dir
from ..ray.settings import RaySettings, prepare_driver
from .config import FleetConfig
from .gateway_process import GatewayProcess
from .progress import Progress
from .resource_plan import ResourcePlan
from .stop import Stop, StopAsked

if TYPE_CHECKING:
    from .local_actors import LocalActors

_log = logging.getLogger(__name__)
_READY_S = 60.0
_ANSWER_S = 30.0
_POLL_S = 0.2
_WORKER_DRAIN_S = 5.0
_LEAVE_S = 10.0
_HURRY_S = 1.0


class Ports:
    """Host and port of everything that others must find again after a restart."""

    def __init__(self, api: int, admin: int, controller: int) -> None:
        self.api, self.admin, self.controller = api, admin, controller


class Fleet:
    def __init__(
        self,
        config: FleetConfig,
        plan: ResourcePlan,
        ports: Ports,
        environ: Mapping[str, str],
        stop: Stop,
        say: Callable[[str], None],
    ) -> None:
        self._config, self._plan, self._ports, self._environ = config, plan, ports, environ
        self._stop, self._say = stop, say
        self._launcher = Launcher(make_run_dir())
        self._head: RayHead | None = None
        self._crew: LocalActors | None = None
        self._gateway: GatewayProcess | None = None
        self._controller = ""

    def start(self) -> None:
        """Returns when a chat request would be answered. Raises ClusterError when that cannot come about."""
        crew = self._crew = self._join_ray()
        state_file = self._launcher.run_dir / "controller.json"
        controller = self._controller = crew.hire_controller(self._ports.controller, state_file)
        crew.hire_workers(controller)
        settings = self._config.gateway(controller, self._ports.api, self._ports.admin)
        gateway = self._gateway = GatewayProcess(settings, self._launcher, self._environ)
        gateway.start()
        self._say(f"controller {controller}, gateway pid {gateway.pid}; workers are starting")
        progress = Progress(self._say)
        with MembershipClient(controller) as client:
            self._wait_for_workers(client, gateway, progress)
        self._wait_for_answer(gateway, progress)

    def watch(self) -> None:
        """Starts again what died, and starts or ends workers as the controller wants them, until a signal comes."""
        with MembershipClient(self._controller) as client:
            while True:
                self._keep_up()
                if self._crew is not None:
                    with contextlib.suppress(FleetError):  # the controller is away; Ray starts it again
                        self._crew.follow(client.status())
                self._stop.wait_until(lambda: False, _POLL_S)

    def drain(self) -> None:
        """The gateway first, so that nothing new comes in; then those it talks to."""
        drain_s = self._config.drain_s
        gateway, crew = self._gateway, self._crew
        if gateway is not None:
            self._launcher.terminate(gateway.pid)
            self._stop.wait_until(lambda: gateway.pid in self._launcher.exited, drain_s + _WORKER_DRAIN_S)
        if crew is not None:
            crew.drain("attention", _WORKER_DRAIN_S)
            crew.drain("expert", _WORKER_DRAIN_S)

    def end(self) -> None:
        """Whatever still runs is killed, and the run's folder removed; clients hear of it before their workers are gone."""
        self._end_gateway()
        crew = self._crew
        if crew is not None:
            with contextlib.suppress(StopAsked):
                self._stop.run(crew.leave, _LEAVE_S)
        killed = self._launcher.end()
        _log.info("%d processes were left to kill", len(killed))

    def _end_gateway(self) -> None:
        """Without a drain: what runs gets an error frame."""
        gateway = self._gateway
        if gateway is None:
            return
        for _ in range(2):  # the second signal is the one that does not wait
            self._launcher.terminate(gateway.pid)
            if self._stop.wait_until(lambda: gateway.pid in self._launcher.exited, _HURRY_S):
                return

    def _join_ray(self) -> "LocalActors":
        settings = RaySettings(self._launcher.run_dir, self._plan.shares[0].threads)
        head = self._head = RayHead(settings, self._launcher)
        self._say("starting Ray")
        head.start(self._environ, self._stop.wait_until)
        prepare_driver(os.environ, settings)
        from ..ray.driver import connect
        from .local_actors import LocalActors  # NOTE: imports ray, which reads its environment at import

        connect(head.address, self._stop.wait_until)
        self._stop.install()  # NOTE: Ray has put handlers of its own in the place of ours
        return LocalActors(self._config, self._plan, self._stop.wait_until, head.renew)

    def _wait_for_workers(self, client: MembershipClient, gateway: GatewayProcess, progress: Progress) -> None:
        is_ready = False
        while not is_ready:
            self._stop.wait_until(lambda: False, _POLL_S)
            if self._crew is not None:
                self._crew.check_births()
            gateway.check_start()
            if self._head is not None:
                self._head.supervise()
            try:
                status = client.status()
            except FleetError as error:
                progress.waiting_for(f"the controller does not answer ({error})")
                continue
            progress.update(status)
            _raise_failure(status)
            if self._crew is not None:
                self._crew.follow(status)
            is_ready = status.ready

    def _wait_for_answer(self, gateway: GatewayProcess, progress: Progress) -> None:
        why = ""

        def is_up() -> bool:
            nonlocal why
            gateway.check_start()
            why = gateway.why_not_ready()
            if not why and not self._stop.run(gateway.answers, _ANSWER_S):
                why = f"a completion of one token got no answer within {_ANSWER_S:g} s"
            progress.waiting_for(why)
            return not why

        if not self._stop.wait_until(is_up, _READY_S):
            raise ClusterError(f"the workers are ready, but {gateway.url} is not after {_READY_S:g} s: {why}")

    def _keep_up(self) -> None:
        self._launcher.check()
        if self._head is not None:
            self._head.supervise()
        if self._gateway is not None:
            self._gateway.supervise()


def _raise_failure(status: pb.FleetStatus) -> None:
    for worker in status.workers:
        if worker.state == "failed":
            raise ClusterError(f"{worker.seat}: {worker.report.error or 'failed without a reason'}")
