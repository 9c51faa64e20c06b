"""The fleet of ``serve``: a head on loopback whose own node takes every worker, and a gateway.

The fleet knows nothing of command lines. 1. ``start`` brings everything up until a completion was answered; 2. ``watch`` keeps it
up; 3. ``drain`` ends it without losing a request; 4. ``end`` leaves nothing behind, whatever happened before.
"""

import logging
from collections.abc import Callable, Mapping
from functools import partial

from ...checkpoint.checkpoint_headers import Outline
from ...membership.client import MembershipClient
from ...proto.address import join_address
from ...proto.errors import FleetError
from ...proto.generated import membership_pb2 as pb
from ...settings.reader import write_file
from ..controller.controller import Controller
from ..controller.desired_state import DesiredState
from ..errors import ClusterError
from ..ray.controller_process import ControllerSpec
from ..ray.fleet_head import FleetHead
from ..ray.launcher import Launcher, make_run_dir
from ..ray.offer import ANY_SEAT, Offer
from ..ray.settings import RaySettings
from ..ray.worker_actor import WORKERS_DIR, failures, settings_file
from .config import FleetConfig
from .gateway_process import GatewayProcess
from .progress import Progress
from .resource_plan import ResourcePlan
from .stop import Stop

_log = logging.getLogger(__name__)
_READY_S = 60.0
_ANSWER_S = 30.0
_POLL_S = 0.2
_GATEWAY_END_S = 5.0
_HURRY_S = 1.0
_HOST = "127.0.0.1"


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
        self._workers_dir = self._launcher.run_dir / "workers"
        self._head = self._make_head()
        self._gateway: GatewayProcess | None = None

    def start(self) -> None:
        """Returns when a chat request would be answered. Raises ClusterError when that cannot come about."""
        controller = self._head.controller.address
        self._write_settings(controller)
        self._say("starting Ray")
        self._head.start(self._stop.wait_until)
        settings = self._config.gateway(controller, self._ports.api, self._ports.admin)
        gateway = self._gateway = GatewayProcess(settings, self._launcher, self._environ)
        gateway.start()
        self._say(f"controller {controller}, gateway pid {gateway.pid}; workers are starting")
        progress = Progress(self._say)
        with MembershipClient(controller) as client:
            self._wait_for_workers(client, gateway, progress)
        self._wait_for_answer(gateway, progress)

    def watch(self) -> None:
        """Starts again what died, until a signal comes."""
        while True:
            self._head.supervise()
            if self._gateway is not None:
                self._gateway.supervise()
            self._stop.wait_until(lambda: False, _POLL_S)

    def drain(self) -> None:
        """The gateway answers what runs and takes nothing new."""
        gateway = self._gateway
        if gateway is not None:
            self._launcher.terminate(gateway.pid)
            self._stop.wait_until(lambda: gateway.has_ended, self._config.drain_s + _GATEWAY_END_S)

    def end(self) -> None:
        """Whatever still runs is killed, and the run's folder removed; clients hear of it before their workers are gone."""
        self._end_gateway()
        killed = self._launcher.end()
        _log.info("%d processes were left to kill", len(killed))

    def _end_gateway(self) -> None:
        """Without a drain: what runs gets an error frame."""
        gateway = self._gateway
        if gateway is None:
            return
        for _ in range(2):  # the second signal is the one that does not wait
            self._launcher.terminate(gateway.pid)
            if self._stop.wait_until(lambda: gateway.has_ended, _HURRY_S):
                return

    def _make_head(self) -> FleetHead:
        """Its node takes every worker."""
        config, plan, run_dir = self._config, self._plan, self._launcher.run_dir
        make_controller = partial(
            Controller,
            plan.shape,
            DesiredState.first(config.attention_workers, config.expert_shards, config.replicas),
            _HOST,
            self._ports.controller,
            state_file=run_dir / "controller.json",
            slow=config.slow_rule,
            outline=Outline(*config.model_folders),
            placing=config.placing,
            budget=plan.budget,
        )
        spec = ControllerSpec(make_controller, join_address(_HOST, self._ports.controller), config.wire)
        settings = RaySettings(run_dir, plan.shares[0].threads, offer=Offer.new(ANY_SEAT))
        environ = {**self._environ, WORKERS_DIR: str(self._workers_dir)}
        return FleetHead(spec, settings, self._launcher, environ)

    def _write_settings(self, controller: str) -> None:
        """Of every seat in the plan, and of each role for seats that come later: they get the fewest threads of its others."""
        self._workers_dir.mkdir()
        for share in self._plan.shares:
            self._write(share.seat, share.seat, controller, share.threads, share.cpus)
        for role, seats in (("attention", self._config.attention_seats), ("expert", self._config.expert_seats)):
            fewest = min(share.threads for share in self._plan.shares if share.seat in seats)
            self._write(role, seats[0], controller, fewest)

    def _write(self, name: str, seat: str, controller: str, threads: int, cpus: str = "") -> None:
        config, spin_us = self._config, self._plan.spin_us
        settings = (
            config.attention(seat, controller, _HOST, threads, spin_us)
            if seat.startswith("attention-")
            else config.expert(seat, controller, _HOST, threads, cpus, spin_us)
        )
        write_file(settings, settings_file(self._workers_dir, name))

    def _wait_for_workers(self, client: MembershipClient, gateway: GatewayProcess, progress: Progress) -> None:
        is_ready = False
        while not is_ready:
            self._stop.wait_until(lambda: False, _POLL_S)
            self._check_workers()
            gateway.check_start()
            self._head.supervise()
            try:
                status = client.status()
            except FleetError as error:
                progress.waiting_for(f"the controller does not answer ({error})")
                continue
            progress.update(status)
            _raise_failure(status)
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

    def _check_workers(self) -> None:
        """Raises ClusterError with the reason when a worker cannot work."""
        for seat, reason in failures(self._workers_dir).items():
            raise ClusterError(f"{seat} cannot start: {reason}")


def _raise_failure(status: pb.FleetStatus) -> None:
    for worker in status.workers:
        if worker.state == "failed":
            raise ClusterError(f"{worker.seat}: {worker.report.error or 'failed without a reason'}")
