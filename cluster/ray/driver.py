"""The controller's process as a driver of Ray: it joins, finds what nodes offer, and has worker actors looked after.

The driver knows nothing of how actors are chosen. Ray reads its environment at import, so that is a driver's from the process's start.
"""

import logging
import time
from pathlib import Path

import ray
from ray.exceptions import RayError

from ...membership.port_probe import why_unreachable
from ...proto.errors import FleetError
from ..controller.desired_state import MAX_SEATS, split_seat
from .node_actors import NodeActors, last_line
from .offer import ANY_SEAT, Offer, offers_among
from .settings import NAMESPACE
from .worker_actor import CONFIGS

_log = logging.getLogger(__name__)
_STEP_S = 0.5
_POLL_S = 0.05


def find_offers() -> list[Offer]:
    """What live nodes offer; an offer of what is no worker's seat would stand in all others' way. Blocks while Ray's head is away."""
    found = [offer for node in ray.nodes() if node["Alive"] for offer in offers_among(node["Resources"])]
    return [offer for offer in found if offer.seat == ANY_SEAT or _is_workers(offer.seat)]


def _is_workers(seat: str) -> bool:
    role, ordinal = split_seat(seat)
    return role in CONFIGS and 0 <= ordinal < MAX_SEATS


def join_ray(address_file: Path) -> None:
    """Returns when this process is a driver of the Ray whose address appears in the file."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    while not address_file.exists():
        time.sleep(_POLL_S)
    address = address_file.read_text()
    while True:
        problem = why_unreachable(address)
        if not problem:
            try:
                ray.init(address, namespace=NAMESPACE, log_to_driver=False, configure_logging=False)
                return
            except (RayError, OSError, RuntimeError, ValueError) as error:
                problem = last_line(error)
        _log.warning("Ray at %s cannot be used: %s", address, problem)
        time.sleep(_STEP_S)


def look_after(actors: NodeActors) -> None:
    """Never returns."""
    is_adopted = False
    while True:
        try:
            if not is_adopted:
                actors.adopt()
                is_adopted = True
            actors.step(find_offers(), time.monotonic())
        except (RayError, FleetError, ConnectionError, TimeoutError) as error:
            _log.warning("nodes and workers are not looked after right now: %s", last_line(error))
        time.sleep(_STEP_S)
