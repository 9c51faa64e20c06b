"""The Ray actors of a fleet on one machine: their start, restart and end, as Ray's driver sees them.

Knows nothing of what they compute or of the processes of Ray itself. 1. ``hire_controller`` and ``hire_workers`` create the
named actors, which Ray restarts whenever they die; 2. ``check_births`` raises what kept one from starting; 3. ``follow``
starts and dismisses as the controller wants it; 4. ``drain`` and ``leave``. Actors belong to this driver, so Ray takes down a fleet
whose ``serve`` is gone.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError, RayError, RayTaskError

from ...checkpoint.checkpoint_headers import Outline
from ...proto.generated import membership_pb2 as pb
from ..controller.desired_state import DesiredState
from ..controller.seats import NOBODY
from ..errors import ClusterError
from ..ray import actors
from ..ray.driver import WaitUntil, is_done, last_line
from ..ray.missing_workers import AGAIN_S, MissingWorkers
from .config import CONTROLLER_SEAT, FleetConfig
from .resource_plan import ResourcePlan

_log = logging.getLogger(__name__)
_HOST = "127.0.0.1"
_BIRTH_S = 120.0


@dataclass(frozen=True)
class Site:
    """The threads and processors (all if empty) that a seat's worker gets."""

    threads: int
    cpus: str = ""


class LocalActors:
    def __init__(
        self, config: FleetConfig, plan: ResourcePlan, wait_until: WaitUntil, renew_head: Callable[[], None]
    ) -> None:
        self._config = config
        self._plan = plan
        self._wait_until = wait_until
        self._handles: dict[str, Any] = {}
        self._births: dict[str, Any] = {}
        self._controller = ""
        self._renew_head = renew_head
        self._absences = MissingWorkers()
        self._hire_at: dict[str, float] = {}  # of seats whose actor was given up
        self._drained: dict[str, int] = {}  # by seat: the process whose actor was given up as it had left

    def site(self, seat: str) -> Site:
        """One that was planned for; for a seat that came later, the fewest threads of its role's others."""
        for share in self._plan.shares:
            if share.seat == seat:
                return Site(share.threads, share.cpus)
        role = seat.partition("-")[0]
        return Site(min(share.threads for share in self._plan.shares if share.seat.startswith(f"{role}-")))

    def hire_controller(self, port: int, state_file: Path) -> str:
        """The controller's address, once it answers."""
        config = self._config
        wanted = DesiredState.first(config.attention_workers, config.expert_shards, config.replicas)
        outline = Outline(*config.model_folders)
        settings = (self._plan.shape, wanted, _HOST, port, state_file, config.slow_rule, config.wire, outline)
        self._hire(CONTROLLER_SEAT, actors.ControllerSeat, *settings, config.placing, self._plan.budget)
        reference = self._handles[CONTROLLER_SEAT].address.remote()
        if not self._wait_until(lambda: is_done(reference), _BIRTH_S):
            raise ClusterError(f"controller: its actor did not start within {_BIRTH_S:g} s")
        self.check_births()
        return str(ray.get(reference))

    def hire_workers(self, controller: str) -> None:
        self._controller = controller
        for seat in (*self._config.attention_seats, *self._config.expert_seats):
            self._hire_worker(seat)

    def follow(self, status: pb.FleetStatus) -> None:
        """Hires for wanted seats that have nobody yet; dismisses whoever's seat is no longer there."""
        seats = {worker.seat: worker.wanted for worker in status.workers if worker.role in ("attention", "expert")}
        now = time.monotonic()
        self.replace_absent(status, now)
        self._replace_drained(status)
        for seat in [seat for seat, is_wanted in seats.items() if is_wanted and seat not in self._handles]:
            if now >= self._hire_at.get(seat, now):
                with contextlib.suppress(ValueError):  # its name is still taken by one that is on its way out
                    self._hire_worker(seat)
                    _log.warning("%s is wanted and starts", seat)
        for seat in [seat for seat in self._handles if seat != CONTROLLER_SEAT and seat not in seats]:
            _log.warning("%s has left", seat)
            with contextlib.suppress(RayError):
                ray.kill(self._handles.pop(seat), no_restart=True)
            self._births.pop(seat, None)

    def replace_absent(self, status: pb.FleetStatus, now: float) -> None:
        """Gives up actors that Ray ought to have started again long ago, and has its head started again."""
        mine = [worker for worker in status.workers if worker.wanted and worker.seat in self._handles]
        absent = [worker.seat for worker in mine if worker.state in NOBODY]
        self._absences.forgive({worker.seat for worker in mine} - set(absent))
        if due := self._absences.look(absent, now):
            _log.error("nobody has come to %s: hired anew, and Ray's head started again", ", ".join(due))
            self._renew_head()
            for seat in due:
                self._hire_at[seat] = now + AGAIN_S
                self._give_up(seat)

    def _replace_drained(self, status: pb.FleetStatus) -> None:
        """A seat that is wanted again, and whose worker had been told to leave before: its actor lives on and has nothing to do."""
        for worker in status.workers:
            seat = worker.seat
            is_over = worker.wanted and worker.state == "left" and self._drained.get(seat) != worker.pid
            if is_over and seat in self._handles:
                self._drained[seat] = worker.pid
                self._give_up(seat)

    def _give_up(self, seat: str) -> None:
        """Aside: Ray's calls wait for its head, which whoever called this starts again."""
        self._births.pop(seat, None)
        threading.Thread(target=_dismiss, args=(self._handles.pop(seat),), daemon=True).start()

    def _hire_worker(self, seat: str) -> None:
        config, controller, site = self._config, self._controller, self.site(seat)
        if seat.startswith("attention-"):
            self._hire(
                seat, actors.AttentionSeat, config.attention(seat, controller, _HOST, site.threads, self._plan.spin_us)
            )
        else:
            settings = config.expert(seat, controller, _HOST, site.threads, site.cpus, self._plan.spin_us)
            self._hire(seat, actors.ExpertSeat, settings)

    def check_births(self) -> None:
        """Raises ClusterError with the reason when an actor's construction failed, or its worker did since."""
        for seat, birth in list(self._births.items()):
            if not is_done(birth):
                continue
            try:
                with contextlib.suppress(ActorUnavailableError):
                    ray.get(birth)
                self._births[seat] = self._handles[seat].ping.remote()
            except (ActorDiedError, RayTaskError) as error:
                raise ClusterError(f"{seat} cannot start: {last_line(error)}") from error

    def drain(self, role: str, timeout_s: float) -> None:
        """Ends the workers of a role; one that is dead already is no error."""
        seats = [seat for seat in self._handles if seat.startswith(f"{role}-")]
        references = [self._handles[seat].drain.remote(timeout_s) for seat in seats]
        self._wait_until(lambda: all(map(is_done, references)), timeout_s + 2)
        for reference in references:
            with contextlib.suppress(RayError, GetTimeoutError):
                ray.get(reference, timeout=0.1)

    def leave(self) -> None:
        """Ends the actors and this driver."""
        for handle in self._handles.values():
            with contextlib.suppress(RayError):
                ray.kill(handle)
        ray.shutdown()

    def _hire(self, seat: str, kind: type, *arguments: Any) -> None:
        actor = ray.remote(kind).options(name=seat, num_cpus=0, max_restarts=-1, max_concurrency=4)
        self._handles[seat] = actor.remote(*arguments)
        self._births[seat] = self._handles[seat].ping.remote()


def _dismiss(handle: Any) -> None:
    with contextlib.suppress(RayError):
        ray.kill(handle, no_restart=True)
