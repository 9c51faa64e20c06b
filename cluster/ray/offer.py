"""A node's offer of its place to workers, and how Ray's resources carry it.

An offer names one seat, or any seat. Several nodes may offer one seat; an offer is one node's alone, from its start to its end. So an
actor is started, stopped and drained for an offer, never for a seat name that another node may serve by now.
"""

import secrets
from collections.abc import Mapping
from typing import NamedTuple

from ..controller.desired_state import MAX_SEATS

ANY_SEAT = "any"
_RESOURCE = "seat-"


class Offer(NamedTuple):
    seat: str
    key: str

    @staticmethod
    def new(seat: str) -> "Offer":
        return Offer(seat, secrets.token_hex(8))

    @staticmethod
    def parse(name: str) -> "Offer | None":
        """From ``name``; None for what is the name of no offer."""
        seat, dot, key = name.rpartition(".")
        return Offer(seat, key) if seat and dot and key else None

    @property
    def name(self) -> str:
        """Names the actor that takes it."""
        return f"{self.seat}.{self.key}"

    @property
    def resource(self) -> str:
        """Names the custom resource that pins actors to the node."""
        return f"{_RESOURCE}{self.name}"

    @property
    def resources(self) -> dict[str, int]:
        """What the node announces: one unit for each actor that it takes."""
        return {self.resource: 2 * MAX_SEATS if self.seat == ANY_SEAT else 1}


def offers_among(resources: Mapping[str, float]) -> list[Offer]:
    """What a node with these resources offers."""
    names = [name for name, amount in resources.items() if name.startswith(_RESOURCE) and amount >= 1]
    found = [Offer.parse(name.removeprefix(_RESOURCE)) for name in names]
    return [offer for offer in found if offer is not None]
