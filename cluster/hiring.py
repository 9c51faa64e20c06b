"""Gives every node of a Ray cluster that offers a seat its worker, and knows when seats come and go.

Knows nothing of what workers do, nor of the nodes' machines. 1. A node that has come is told to the controller, which from
then on wants its seat; 2. a wanted seat that is offered gets a named actor, which outlives this process and which Ray starts
again, also on the node's successor; 3. who left its seat is dismissed, and its node gets no other worker; 4. a seat that no
node offers for a long time is forgotten.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import ray
from ray.exceptions import RayError

from ..proto.errors import FleetError
from . import actors
from .absence import Absences
from .ray_driver import is_done, last_line
from .ray_settings import NAMESPACE, offered_seats, seat_resource
from .wanted import Wanted, split_seat

_log = logging.getLogger(__name__)
_RETRY_S = 5.0
_STEP_S = 1.0


class Controlled(Protocol):
    """What this asks of the controller."""

    def wanted(self) -> Wanted: ...

    def occupied(self) -> set[str]:
        """The seats in its book, those that somebody has yet to leave included."""

    def absent(self) -> set[str]:
        """The wanted seats without a process."""

    def offer(self, seats: list[str]) -> None: ...

    def forget(self, seats: list[str]) -> None: ...


class Hiring:
    def __init__(
        self, controller: Controlled, gather_s: float, forget_s: float, renew_head: Callable[[], None] = lambda: None
    ) -> None:
        """The first nodes are told together, when none has come for ``gather_s``: so experts are laid out once."""
        self._controller = controller
        self._gather_s, self._forget_s = gather_s, forget_s
        self._told: dict[str, str] = {}  # seat: the node that offered it
        self._last_offered: dict[str, float] = {}
        self._newest: tuple[frozenset[str], float] = (frozenset(), 0.0)
        self._handles: dict[str, Any] = {}
        self._births: dict[str, tuple[Any, float]] = {}
        self._renew_head = renew_head
        self._absences = Absences()

    def adopt(self) -> None:
        """Workers that an earlier process hired."""
        for actor in ray.util.list_named_actors(all_namespaces=True):
            if actor["namespace"] == NAMESPACE:
                with contextlib.suppress(ValueError):
                    self._handles[actor["name"]] = ray.get_actor(actor["name"], NAMESPACE)

    def step(self, offers: Mapping[str, str], now: float) -> None:
        """``offers``: the node of every seat that a live node offers."""
        for seat in (*offers, *_seats(self._controller.wanted())):
            self._last_offered.setdefault(seat, now)
        self._last_offered |= dict.fromkeys(offers, now)
        if not self._tell(offers, now):
            return
        self._forget(offers, now)
        occupied = self._controller.occupied()
        for seat in [seat for seat in self._handles if seat not in occupied]:
            self._dismiss(seat)
        self._replace_absent(offers, now)
        wanted = _seats(self._controller.wanted())
        for seat in offers:
            if seat in wanted and seat not in self._handles:
                self._hire(seat, now)
        self._look_after_births(now)

    def _tell(self, offers: Mapping[str, str], now: float) -> bool:
        """Whether there are any seats yet."""
        if frozenset(offers) != self._newest[0]:
            self._newest = (frozenset(offers), now)
        is_first = not _seats(self._controller.wanted())
        if is_first and (not offers or now - self._newest[1] < self._gather_s):
            return False
        new = [seat for seat, node in offers.items() if self._told.get(seat) != node]
        if new:
            _log.warning("nodes have come for %s", ", ".join(sorted(new)))
            self._controller.offer(new)
            self._told |= {seat: offers[seat] for seat in new}
        return True

    def _forget(self, offers: Mapping[str, str], now: float) -> None:
        gone = [
            seat
            for seat in _seats(self._controller.wanted())
            if seat not in offers and now - self._last_offered[seat] > self._forget_s
        ]
        if gone:
            _log.warning("no node has offered %s for %g s; forgotten", ", ".join(sorted(gone)), self._forget_s)
            self._controller.forget(gone)

    def _hire(self, seat: str, now: float) -> None:
        options: dict[str, Any] = {
            "resources": {seat_resource(seat): 1},
            "lifetime": "detached",
            "namespace": NAMESPACE,
        }
        actor = ray.remote(actors.NodeSeat).options(
            name=seat, num_cpus=0, max_restarts=-1, max_concurrency=4, **options
        )
        with contextlib.suppress(ValueError):  # its name is still taken by one that is on its way out
            self._handles[seat] = actor.remote()
            self._births[seat] = (self._handles[seat].ping.remote(), now)
            _log.warning("%s starts", seat)

    def _replace_absent(self, offers: Mapping[str, str], now: float) -> None:
        """Ray ought to have started their actors again long ago, as their nodes are there."""
        absent = self._controller.absent() & offers.keys() & self._handles.keys()
        self._absences.forgive(self._handles.keys() - absent)
        if due := self._absences.look(sorted(absent), now):
            _log.error("nobody has come to %s: hired anew, and Ray's head started again", ", ".join(due))
            self._renew_head()
            for seat in due:
                self._dismiss(seat)

    def _dismiss(self, seat: str) -> None:
        _log.warning("%s has left", seat)
        self._births.pop(seat, None)
        with contextlib.suppress(RayError):
            ray.kill(self._handles.pop(seat), no_restart=True)

    def _look_after_births(self, now: float) -> None:
        """One that could not even be made is said, and made again after a while."""
        for seat, (birth, at) in list(self._births.items()):
            if not is_done(birth):
                continue
            try:
                ray.get(birth)
            except RayError as error:
                if now - at < _RETRY_S:
                    continue
                _log.warning("%s cannot start: %s", seat, last_line(error))
                with contextlib.suppress(RayError):
                    ray.kill(self._handles.pop(seat), no_restart=True)
            del self._births[seat]


def offers() -> dict[str, str]:
    """The node of every seat that a live node offers. Blocks while Ray's head is away."""
    found: dict[str, str] = {}
    for node in ray.nodes():
        if node["Alive"]:
            seats = [seat for seat in offered_seats(node["Resources"]) if split_seat(seat)[0] in actors.ROLES]
            found |= dict.fromkeys(seats, node["NodeID"])
    return found


def keep_hiring(hiring: Hiring) -> None:
    """For a thread of its own; never returns."""
    adopted = False
    while True:
        try:
            if not adopted:
                hiring.adopt()
                adopted = True
            hiring.step(offers(), time.monotonic())
        except (RayError, FleetError, ConnectionError, TimeoutError) as error:
            _log.warning("nodes and workers are not looked after right now: %s", last_line(error))
        time.sleep(_STEP_S)


def _seats(wanted: Wanted) -> set[str]:
    return {*wanted.seats("attention"), *wanted.seats("expert")}
