"""A node's offer of its place to one seat, and how Ray's words carry it.

Knows nothing of who takes it. A seat is a name, and several nodes may offer it; an offer is one node's alone, from its start to its
end. So what is hired, dismissed and drained is an offer's worker, never whoever sits at a seat of that name.
"""

import secrets
from collections.abc import Mapping
from typing import NamedTuple

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
        """Of the actor that takes it."""
        return f"{self.seat}.{self.key}"

    @property
    def resource(self) -> str:
        """The custom resource that pins that actor to the node."""
        return f"{_RESOURCE}{self.name}"


def offers_among(resources: Mapping[str, float]) -> list[Offer]:
    """What a node with these resources offers."""
    names = [name for name, amount in resources.items() if name.startswith(_RESOURCE) and amount >= 1]
    found = [Offer.parse(name.removeprefix(_RESOURCE)) for name in names]
    return [offer for offer in found if offer is not None]
