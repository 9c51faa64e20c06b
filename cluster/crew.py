"""The fleet's actors as Ray's driver sees them: places, births, ends.

Knows nothing of what they compute or of the processes of Ray itself. 1. ``connect``; 2. ``sites`` finds the node of
every seat; 3. ``hire_controller`` and ``hire_workers`` create the named actors, which Ray restarts whenever they die;
4. ``check_births`` raises what kept one from starting; 5. ``follow`` hires and dismisses as the controller wants it; 6. ``drain`` and
``leave``. Actors belong to this driver, so a fleet whose ``serve`` is gone is taken down by Ray on every node.
"""

import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError, RayError, RayTaskError

from ..proto.generated import membership_pb2 as pb
from . import actors
from .config import CONTROLLER_SEAT, FleetConfig
from .errors import ClusterError
from .plan import Plan, threads_per_worker
from .ray_settings import NAMESPACE, seat_resource, thread_environment
from .wanted import Wanted

_log = logging.getLogger(__name__)
_CONNECT_S = 20.0
_REACH_S = 5.0
_BIRTH_S = 120.0

WaitUntil = Callable[[Callable[[], bool], float], bool]


@dataclass(frozen=True)
class Site:
    """Where a seat is: the address its node is reached at, and the threads and processors (all if empty) its worker gets."""

    host: str
    threads: int
    cpus: str = ""


class Crew:
    def __init__(self, config: FleetConfig, plan: Plan, wait_until: WaitUntil) -> None:
        self._config = config
        self._plan = plan
        self._wait_until = wait_until
        self._handles: dict[str, Any] = {}
        self._births: dict[str, Any] = {}
        self._controller = ""

    def connect(self, address: str) -> None:
        """Joins the Ray at ``address`` as a driver; an unreachable one is an error within ``_CONNECT_S``."""
        logging.getLogger("ray").setLevel(logging.ERROR)
        problem: list[str] = [reason] if (reason := _unreachable(address)) else []

        def join() -> None:
            try:
                ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, configure_logging=False)
            except (RayError, OSError, RuntimeError, ValueError) as error:
                problem.append(_last_line(error))

        thread = threading.Thread(target=join, name="ray-init", daemon=True)
        if not problem:
            thread.start()
        if not self._wait_until(lambda: not thread.is_alive(), _CONNECT_S):
            problem.append(f"no answer within {_CONNECT_S:g} s")
        if problem:
            raise ClusterError(
                f"Ray at {address} cannot be used: {problem[0]}; is it running, is its token in RAY_AUTH_TOKEN "
                f"(with RAY_AUTH_MODE=token), and is this machine one of its nodes (ray start --address={address})?"
            )

    def sites(self) -> dict[str, Site]:
        """Every seat's site. Raises ClusterError when no node offers a seat."""
        found = self._sites_of(self._config.seats)
        missing = [seat for seat in self._config.seats if seat not in found]
        if missing:
            example = (
                f"ray start --address={self._config.ray_address} --resources='{{\"{seat_resource(missing[0])}\": 1}}'"
            )
            raise ClusterError(f"Ray offers no place for {', '.join(missing)}; start a node that does: {example}")
        return found

    def _sites_of(self, seats: Sequence[str]) -> dict[str, Site]:
        """Those of ``seats`` that have a place; on a machine of its own Ray, every one has."""
        if self._config.is_local:
            shares = {share.seat: share for share in self._plan.shares}
            threads = self._config.threads or min(share.threads for share in self._plan.shares)
            planned = {seat: (shares[seat].threads, shares[seat].cpus) for seat in seats if seat in shares}
            return {seat: Site("127.0.0.1", *planned.get(seat, (threads, ""))) for seat in seats}
        sites: dict[str, Site] = {}
        for node in ray.nodes():
            here = [seat for seat in seats if node["Alive"] and node["Resources"].get(seat_resource(seat), 0) >= 1]
            threads = self._config.threads or threads_per_worker(
                int(node["Resources"].get("CPU", 1)), max(1, len(here))
            )
            sites |= {seat: Site(node["NodeManagerAddress"], threads) for seat in here}
        return sites

    def hire_controller(self, site: Site, port: int, state_file: Path | None) -> str:
        """The controller's address, once it answers."""
        config = self._config
        wanted = Wanted.first(config.attention_workers, config.expert_shards, config.replicas)
        settings = (self._plan.shape, wanted, site.host, port, state_file, config.wire)
        self._hire(CONTROLLER_SEAT, actors.ControllerSeat, site, *settings)
        reference = self._handles[CONTROLLER_SEAT].address.remote()
        if not self._wait_until(lambda: _is_done(reference), _BIRTH_S):
            raise ClusterError(f"controller: its actor did not start within {_BIRTH_S:g} s")
        self.check_births()
        return str(ray.get(reference))

    def hire_workers(self, sites: dict[str, Site], controller: str) -> None:
        self._controller = controller
        for seat in (*self._config.attention_seats, *self._config.expert_seats):
            self._hire_worker(seat, sites[seat])

    def follow(self, status: pb.FleetStatus) -> None:
        """Hires for wanted seats that have nobody yet; dismisses whoever's seat is no longer there."""
        seats = {worker.seat: worker.wanted for worker in status.workers if worker.role in ("attention", "expert")}
        vacant = [seat for seat, is_wanted in seats.items() if is_wanted and seat not in self._handles]
        if vacant:
            for seat, site in self._sites_of(vacant).items():
                _log.warning("%s is wanted and starts", seat)
                self._hire_worker(seat, site)
        for seat in [seat for seat in self._handles if seat != CONTROLLER_SEAT and seat not in seats]:
            _log.warning("%s has left", seat)
            with contextlib.suppress(RayError):
                ray.kill(self._handles.pop(seat), no_restart=True)
            self._births.pop(seat, None)

    def _hire_worker(self, seat: str, site: Site) -> None:
        config, controller = self._config, self._controller
        if seat.startswith("attention-"):
            self._hire(seat, actors.AttentionSeat, site, config.attention(seat, controller, site.host, site.threads))
        else:
            settings = config.expert(seat, controller, site.host, site.threads, site.cpus)
            self._hire(seat, actors.ExpertSeat, site, settings)

    def check_births(self) -> None:
        """Raises ClusterError with the reason when an actor's construction failed, or its worker did since."""
        for seat, birth in list(self._births.items()):
            if not _is_done(birth):
                continue
            try:
                with contextlib.suppress(ActorUnavailableError):
                    ray.get(birth)
                self._births[seat] = self._handles[seat].ping.remote()
            except (ActorDiedError, RayTaskError) as error:
                raise ClusterError(f"{seat} cannot start: {_last_line(error)}") from error

    def drain(self, role: str, timeout_s: float) -> None:
        """Ends the workers of a role; one that is dead already is no error."""
        seats = [seat for seat in self._handles if seat.startswith(f"{role}-")]
        references = [self._handles[seat].drain.remote(timeout_s) for seat in seats]
        self._wait_until(lambda: all(map(_is_done, references)), timeout_s + 2)
        for reference in references:
            with contextlib.suppress(RayError, GetTimeoutError):
                ray.get(reference, timeout=0.1)

    def leave(self) -> None:
        """Ends the actors and this driver."""
        for handle in self._handles.values():
            with contextlib.suppress(RayError):
                ray.kill(handle)
        ray.shutdown()

    def _hire(self, seat: str, kind: type, site: Site, *arguments: Any) -> None:
        options: dict[str, Any] = {}
        if not self._config.is_local:
            options["runtime_env"] = {"env_vars": thread_environment(site.threads)}
            options["resources"] = {seat_resource(seat): 1}
        actor = ray.remote(kind).options(name=seat, num_cpus=0, max_restarts=-1, max_concurrency=4, **options)
        try:
            self._handles[seat] = actor.remote(*arguments)
        except ValueError as error:
            raise ClusterError(f"another fleet runs in this Ray already: {_last_line(error)}") from error
        self._births[seat] = self._handles[seat].ping.remote()


def _unreachable(address: str) -> str:
    """Why nothing listens at ``address``; Ray itself would go on trying."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_REACH_S).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _is_done(reference: Any) -> bool:
    done, _ = ray.wait([reference], timeout=0)
    return bool(done)


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
