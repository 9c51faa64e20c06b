"""Starts a worker actor on every node for the seats that the node offers, and stops actors whose seats are gone.

The actors' manager knows nothing of what workers do, nor of the nodes' machines. A node offers one seat, or any seat. 1. The controller
hears of a node that offers one seat, and from then on desires that seat; where several nodes offer one seat, the first has it as long as
it is there; 2. a desired seat that is offered gets an actor, which belongs to that offer alone, outlives this process, and is started again
by Ray; 3. an actor whose worker has left its seat is stopped, and so is the actor of a node that is gone once another node offers the
seat; 4. an actor whose worker does not come, or has drained although its seat is desired again, is replaced; 5. a seat that no node has
offered for a long time is forgotten.
"""

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import ray
from ray.exceptions import RayError

from ..atomic_file import write_whole
from ..controller.desired_state import DesiredState
from .head import kill_gcs_server
from .missing_workers import MissingWorkers
from .offer import ANY_SEAT, Offer
from .settings import NAMESPACE
from .worker_actor import WorkerActor

_log = logging.getLogger(__name__)
_RETRY_S = 5.0


class Controlled(Protocol):
    """What is read from the controller, and told to it."""

    def desired(self) -> DesiredState: ...

    def occupied(self) -> set[str]:
        """The seats in its book, including seats that a worker has yet to leave."""

    def vacancies(self) -> dict[str, str]:
        """Each desired seat without a process, and its state."""

    def offer(self, seats: dict[str, str]) -> None:
        """Each with the key of the offer that has it."""

    def forget(self, seats: list[str]) -> None: ...


class NodeActors:
    def __init__(
        self,
        controller: Controlled,
        gather_s: float,
        forget_s: float,
        offers_file: Path | None = None,
        restart_ray: Callable[[], None] = lambda: kill_gcs_server(os.getppid()),
    ) -> None:
        """The controller hears of the first nodes together, when none has come for ``gather_s``: so experts are laid out once.

        ``offers_file`` keeps the offers that the controller has heard of: a seat that was drained since is not desired again because
        this process is a new one. Raises ValueError for a file that is not one of ours.
        """
        self._controller = controller
        self._gather_s, self._forget_s = gather_s, forget_s
        self._offers_file = offers_file
        self._announced = _read_offers(offers_file)  # by seat: whose it is
        self._left: set[Offer] = set()  # whose worker has left
        self._last_offered: dict[str, float] = {}
        self._newest: tuple[frozenset[str], float] = (frozenset(), 0.0)
        self._handles: dict[Offer, Any] = {}
        self._starting: dict[Offer, tuple[Any, float]] = {}
        self._served: set[Offer] = set()  # whose worker has held its seat
        self._restart_ray = restart_ray
        self._missing = MissingWorkers()

    def adopt(self) -> None:
        """Takes over the actors that an earlier process started."""
        for actor in ray.util.list_named_actors(all_namespaces=True):
            offer = Offer.parse(actor["name"])
            if actor["namespace"] == NAMESPACE and offer is not None:
                with contextlib.suppress(ValueError):
                    self._handles[offer] = ray.get_actor(offer.name, NAMESPACE)

    def step(self, found: Iterable[Offer], now: float) -> None:
        """``found``: what live nodes offer."""
        found = list(found)
        occupied = self._controller.occupied()
        self._left |= {offer for seat, offer in self._announced.items() if seat not in occupied}
        named = self._choose(offer for offer in found if offer.seat != ANY_SEAT)
        desired = _seats(self._controller.desired())
        keys = [offer.key for offer in found if offer.seat == ANY_SEAT]
        offers = {seat: Offer(seat, key) for key in keys for seat in desired} | named
        for seat in desired:
            self._last_offered.setdefault(seat, now)
        self._last_offered |= dict.fromkeys(offers, now)
        if not self._announce(named, now):
            return
        self._forget(offers, now)
        self._stop_gone(offers)
        self._replace_missing(offers, now)
        self._start_desired(offers, {offer.key: offer.resource for offer in found}, now)
        self._check_starts(now)

    def _choose(self, found: Iterable[Offer]) -> dict[str, Offer]:
        """Whose each seat is: an offer that has an actor, or was announced first; one whose worker has left only if no other is there."""
        present = sorted(found)
        self._left &= set(present)

        def rank(offer: Offer) -> tuple[bool, bool, bool]:
            return offer in self._left, offer not in self._handles, self._announced.get(offer.seat) != offer

        return {offer.seat: offer for offer in sorted(present, key=rank, reverse=True)}

    def _announce(self, offers: Mapping[str, Offer], now: float) -> bool:
        """Whether there are any seats yet."""
        if frozenset(offers) != self._newest[0]:
            self._newest = (frozenset(offers), now)
        is_first = not _seats(self._controller.desired())
        if is_first and (not offers or now - self._newest[1] < self._gather_s):
            return False
        new = {seat: offer for seat, offer in offers.items() if self._announced.get(seat) != offer}
        if new:
            _log.warning("nodes have come for %s", ", ".join(sorted(new)))
            self._controller.offer({seat: offer.key for seat, offer in new.items()})
            self._announced |= new
            self._keep_offers()
        return True

    def _forget(self, offers: Mapping[str, Offer], now: float) -> None:
        gone = [
            seat
            for seat in _seats(self._controller.desired())
            if seat not in offers and now - self._last_offered[seat] > self._forget_s
        ]
        if gone:
            _log.warning("no node has offered %s for %g s; forgotten", ", ".join(sorted(gone)), self._forget_s)
            self._controller.forget(gone)
            self._announced = {seat: offer for seat, offer in self._announced.items() if seat not in gone}
            self._keep_offers()

    def _keep_offers(self) -> None:
        if self._offers_file is None:
            return
        try:
            write_whole(self._offers_file, json.dumps({seat: offer.key for seat, offer in self._announced.items()}))
        except OSError as error:
            _log.warning(
                "%s cannot be written (%s); the next head may want again what leaves", self._offers_file, error.strerror
            )

    def _stop_gone(self, offers: Mapping[str, Offer]) -> None:
        occupied = self._controller.occupied()
        for offer in list(self._handles):
            if offer.seat not in occupied:
                self._stop(offer, "has left")
            elif offers.get(offer.seat, offer) != offer:
                self._stop(offer, "is gone, and another node offers its seat")

    def _replace_missing(self, offers: Mapping[str, Offer], now: float) -> None:
        """Stops actors that Ray ought to have started again long ago, and actors that have nothing to do since their worker drained."""
        vacant = {offers[seat]: state for seat, state in self._controller.vacancies().items() if seat in offers}
        vacant = {offer: state for offer, state in vacant.items() if offer in self._handles}
        served = self._handles.keys() - vacant.keys()
        for offer in [offer for offer, state in vacant.items() if state == "left" and offer in self._served]:
            self._stop(offer, "has drained, and its seat is wanted again")
            del vacant[offer]
        self._served |= served
        self._missing.forgive({offer.seat for offer in served})
        if due := self._missing.look(sorted(offer.seat for offer in vacant), now):
            _log.error("no worker has come to %s: started anew, and Ray's head as well", ", ".join(due))
            self._restart_ray()
            for offer in [offers[seat] for seat in due]:
                self._stop(offer, "has not come")

    def _start_desired(self, offers: Mapping[str, Offer], resources: Mapping[str, str], now: float) -> None:
        """``resources`` are the nodes', by their offers' keys."""
        desired = _seats(self._controller.desired())
        started: list[str] = []
        for seat, offer in offers.items():
            if seat in desired and offer not in self._handles:
                with contextlib.suppress(ValueError):  # its name is still taken by an actor that is about to end
                    self._start(offer, resources[offer.key], now)
                    started.append(seat)
        if started:
            _log.warning("%s starts" if len(started) == 1 else "%s start", ", ".join(started))

    def _start(self, offer: Offer, resource: str, now: float) -> None:
        actor = ray.remote(WorkerActor).options(
            name=offer.name,
            namespace=NAMESPACE,
            lifetime="detached",
            resources={resource: 1},
            num_cpus=0,
            max_restarts=-1,
            max_concurrency=4,
        )
        self._handles[offer] = actor.remote(offer.seat, offer.key)
        self._starting[offer] = (self._handles[offer].ping.remote(), now)

    def _stop(self, offer: Offer, why: str) -> None:
        _log.warning("%s %s", offer.seat, why)
        self._starting.pop(offer, None)
        self._served.discard(offer)
        with contextlib.suppress(RayError):
            ray.kill(self._handles.pop(offer), no_restart=True)

    def _check_starts(self, now: float) -> None:
        """Logs why an actor could not be made, and has it made again after a while."""
        for offer, (reference, at) in list(self._starting.items()):
            done, _ = ray.wait([reference], timeout=0)
            if not done:
                continue
            try:
                ray.get(reference)
            except RayError as error:
                if now - at < _RETRY_S:
                    continue
                self._stop(offer, f"cannot start: {last_line(error)}")
            self._starting.pop(offer, None)


def _read_offers(path: Path | None) -> dict[str, Offer]:
    """Raises ValueError for a file that is not one of ours."""
    if path is None or not path.exists():
        return {}
    try:
        return {seat: Offer(seat, str(key)) for seat, key in json.loads(path.read_text()).items()}
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path}: does not say which offers were told ({error!r})") from error


def last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _seats(desired: DesiredState) -> set[str]:
    return {*desired.seats("attention"), *desired.seats("expert")}
