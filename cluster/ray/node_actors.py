"""Gives every node of a Ray cluster that offers a seat its worker, and knows when seats come and go.

Knows nothing of what workers do, nor of the nodes' machines. 1. A node that has come is told to the controller, which from
then on wants its seat; where several offer one seat, the first has it as long as it is there; 2. a wanted seat that is offered gets an
actor, which is that offer's alone, outlives this process, and is started again by Ray; 3. who left its seat is dismissed, and its
node gets no other worker; where another node's offer has come in the place of one that is gone, that one's worker is dismissed, too; 4. a
seat that no node offers for a long time is forgotten.
"""

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import ray
from ray.exceptions import RayError

from ...proto.errors import FleetError
from ..atomic_file import write_whole
from ..controller.desired_state import MAX_SEATS, DesiredState, split_seat
from . import actors
from .driver import is_done, last_line
from .missing_workers import MissingWorkers
from .offer import Offer, offers_among
from .settings import NAMESPACE

_log = logging.getLogger(__name__)
_RETRY_S = 5.0
_STEP_S = 1.0


class Controlled(Protocol):
    """What this asks of the controller."""

    def wanted(self) -> DesiredState: ...

    def occupied(self) -> set[str]:
        """The seats in its book, those that somebody has yet to leave included."""

    def absent(self) -> set[str]:
        """The wanted seats without a process."""

    def offer(self, seats: dict[str, str]) -> None:
        """Each with the key of the offer that has it."""

    def forget(self, seats: list[str]) -> None: ...


class NodeActors:
    def __init__(
        self,
        controller: Controlled,
        gather_s: float,
        forget_s: float,
        renew_head: Callable[[], None] = lambda: None,
        told_file: Path | None = None,
    ) -> None:
        """The first nodes are told together, when none has come for ``gather_s``: so experts are laid out once.

        ``told_file`` keeps which offers were told: a seat that was drained since is not wanted because this process is a new one.
        Raises ValueError for a file that is not one of ours.
        """
        self._controller = controller
        self._gather_s, self._forget_s = gather_s, forget_s
        self._told_file = told_file
        self._told = _read_told(told_file)  # by seat: whose it is
        self._left: set[Offer] = set()  # whose worker has left
        self._last_offered: dict[str, float] = {}
        self._newest: tuple[frozenset[str], float] = (frozenset(), 0.0)
        self._handles: dict[Offer, Any] = {}
        self._births: dict[Offer, tuple[Any, float]] = {}
        self._renew_head = renew_head
        self._absences = MissingWorkers()

    def adopt(self) -> None:
        """Workers that an earlier process hired."""
        for actor in ray.util.list_named_actors(all_namespaces=True):
            offer = Offer.parse(actor["name"])
            if actor["namespace"] == NAMESPACE and offer is not None:
                with contextlib.suppress(ValueError):
                    self._handles[offer] = ray.get_actor(offer.name, NAMESPACE)

    def step(self, found: Iterable[Offer], now: float) -> None:
        """``found``: what live nodes offer."""
        occupied = self._controller.occupied()
        self._left |= {offer for seat, offer in self._told.items() if seat not in occupied}
        offers = self._choose(found)
        for seat in (*offers, *_seats(self._controller.wanted())):
            self._last_offered.setdefault(seat, now)
        self._last_offered |= dict.fromkeys(offers, now)
        if not self._tell(offers, now):
            return
        self._forget(offers, now)
        occupied = self._controller.occupied()
        for offer in list(self._handles):
            if offer.seat not in occupied:
                self._dismiss(offer, "has left")
            elif offers.get(offer.seat, offer) != offer:
                self._dismiss(offer, "is gone, and another node offers its seat")
        self._replace_absent(offers, now)
        wanted = _seats(self._controller.wanted())
        for offer in offers.values():
            if offer.seat in wanted and offer not in self._handles:
                self._hire(offer, now)
        self._look_after_births(now)

    def _choose(self, found: Iterable[Offer]) -> dict[str, Offer]:
        """Whose each seat is: one's that has a worker, or was told first; one's whose worker has left only if there is no other."""
        present = sorted(found)
        self._left &= set(present)

        def rank(offer: Offer) -> tuple[bool, bool, bool]:
            return offer in self._left, offer not in self._handles, self._told.get(offer.seat) != offer

        return {offer.seat: offer for offer in sorted(present, key=rank, reverse=True)}

    def _tell(self, offers: Mapping[str, Offer], now: float) -> bool:
        """Whether there are any seats yet."""
        if frozenset(offers) != self._newest[0]:
            self._newest = (frozenset(offers), now)
        is_first = not _seats(self._controller.wanted())
        if is_first and (not offers or now - self._newest[1] < self._gather_s):
            return False
        new = {seat: offer for seat, offer in offers.items() if self._told.get(seat) != offer}
        if new:
            _log.warning("nodes have come for %s", ", ".join(sorted(new)))
            self._controller.offer({seat: offer.key for seat, offer in new.items()})
            self._told |= new
            self._keep_told()
        return True

    def _forget(self, offers: Mapping[str, Offer], now: float) -> None:
        gone = [
            seat
            for seat in _seats(self._controller.wanted())
            if seat not in offers and now - self._last_offered[seat] > self._forget_s
        ]
        if gone:
            _log.warning("no node has offered %s for %g s; forgotten", ", ".join(sorted(gone)), self._forget_s)
            self._controller.forget(gone)
            self._told = {seat: offer for seat, offer in self._told.items() if seat not in gone}
            self._keep_told()

    def _keep_told(self) -> None:
        if self._told_file is None:
            return
        try:
            write_whole(self._told_file, json.dumps({seat: offer.key for seat, offer in self._told.items()}))
        except OSError as error:
            _log.warning(
                "%s cannot be written (%s); the next head may want again what leaves", self._told_file, error.strerror
            )

    def _hire(self, offer: Offer, now: float) -> None:
        options: dict[str, Any] = {
            "resources": {offer.resource: 1},
            "lifetime": "detached",
            "namespace": NAMESPACE,
        }
        actor = ray.remote(actors.NodeSeat).options(
            name=offer.name, num_cpus=0, max_restarts=-1, max_concurrency=4, **options
        )
        with contextlib.suppress(ValueError):  # its name is still taken by one that is on its way out
            self._handles[offer] = actor.remote()
            self._births[offer] = (self._handles[offer].ping.remote(), now)
            _log.warning("%s starts", offer.seat)

    def _replace_absent(self, offers: Mapping[str, Offer], now: float) -> None:
        """Ray ought to have started their actors again long ago, as their nodes are there."""
        absent = {seat for seat in self._controller.absent() if offers.get(seat) in self._handles}
        self._absences.forgive({offer.seat for offer in self._handles} - absent)
        if due := self._absences.look(sorted(absent), now):
            _log.error("nobody has come to %s: hired anew, and Ray's head started again", ", ".join(due))
            self._renew_head()
            for seat in due:
                self._dismiss(offers[seat], "has not come")

    def _dismiss(self, offer: Offer, why: str) -> None:
        _log.warning("%s %s", offer.seat, why)
        self._births.pop(offer, None)
        with contextlib.suppress(RayError):
            ray.kill(self._handles.pop(offer), no_restart=True)

    def _look_after_births(self, now: float) -> None:
        """One that could not even be made is said, and made again after a while."""
        for offer, (birth, at) in list(self._births.items()):
            if not is_done(birth):
                continue
            try:
                ray.get(birth)
            except RayError as error:
                if now - at < _RETRY_S:
                    continue
                _log.warning("%s cannot start: %s", offer.seat, last_line(error))
                with contextlib.suppress(RayError):
                    ray.kill(self._handles.pop(offer), no_restart=True)
            del self._births[offer]


def _read_told(path: Path | None) -> dict[str, Offer]:
    """Raises ValueError for a file that is not one of ours."""
    if path is None or not path.exists():
        return {}
    try:
        return {seat: Offer(seat, str(key)) for seat, key in json.loads(path.read_text()).items()}
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path}: does not say which offers were told ({error!r})") from error


def find_offers() -> list[Offer]:
    """What live nodes offer; what is no worker's seat would stand in all others' way. Blocks while Ray's head is away."""
    found = [offer for node in ray.nodes() if node["Alive"] for offer in offers_among(node["Resources"])]
    return [offer for offer in found if _is_workers(offer.seat)]


def _is_workers(seat: str) -> bool:
    role, ordinal = split_seat(seat)
    return role in actors.ROLES and 0 <= ordinal < MAX_SEATS


def keep_hiring(hiring: NodeActors) -> None:
    """For a thread of its own; never returns."""
    adopted = False
    while True:
        try:
            if not adopted:
                hiring.adopt()
                adopted = True
            hiring.step(find_offers(), time.monotonic())
        except (RayError, FleetError, ConnectionError, TimeoutError) as error:
            _log.warning("nodes and workers are not looked after right now: %s", last_line(error))
        time.sleep(_STEP_S)


def _seats(wanted: DesiredState) -> set[str]:
    return {*wanted.seats("attention"), *wanted.seats("expert")}
