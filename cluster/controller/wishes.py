"""What a wish for another size would have the fleet become, or why that cannot be.

Knows nothing of gRPC and of how a fleet becomes what is wanted. Nothing is changed here.
"""

import time
from collections.abc import Sequence

from ...expert_workers.memory import available_memory
from ...proto.errors import Code, FleetError
from ...proto.generated import membership_pb2 as pb
from .assignment import check_fits
from .budget import Budget, Size
from .desired_state import DesiredState
from .seats import SeatBook

_MOST_NAMED = 8  # seats, in a refusal


class Wishes:
    """``budget`` is of the machine that all workers share, if they do. Refusals are FleetErrors BAD_REQUEST."""

    def __init__(self, book: SeatBook, seats_are_offered: bool, budget: Budget | None) -> None:
        self.offers: dict[str, str] = {}  # of nodes, by seat
        self._book, self._seats_are_offered, self._budget = book, seats_are_offered, budget

    def granted(self, request: pb.ScaleRequest) -> DesiredState:
        """What would be wanted."""
        wanted, name = self._without(request.without) if request.without else self._scaled(request)
        sizes_named = [
            number for number in ("expert_shards", "attention_workers", "replicas") if request.HasField(number)
        ]
        if self._budget is not None and sizes_named:
            fault = self._budget.why_not(Size.of(wanted), Size.of(self._book.wanted), available_memory())
            if fault:
                raise FleetError(Code.BAD_REQUEST, fault)
        # Whoever goes does not wait until copies have found another place.
        with_copies = bool({"expert_shards", "replicas"} & set(sizes_named))
        num_experts = int(self._book.shape.all_experts().sum())
        check_fits(self._rooms(wanted, num_experts), num_experts, wanted.replicas, name, with_copies)
        return wanted

    def _rooms(self, wanted: DesiredState, num_experts: int) -> list[int]:
        """Of each shard that would be there; one that has not come yet is as the machine's others."""
        most = self._budget.room if self._budget is not None else num_experts
        known = self._book.seats
        return [(known[seat].capacity if seat in known else 0) or most for seat in wanted.seats("expert")]

    def _scaled(self, request: pb.ScaleRequest) -> tuple[DesiredState, str]:
        """What is wanted, and what of the request says so."""
        wanted, name = self._book.wanted, "replicas"
        for number in ("expert_shards", "attention_workers"):
            if self._seats_are_offered and request.HasField(number):
                how = "start or end nodes instead (on Kubernetes: expertfleet scale --statefulset NAME)"
                raise FleetError(
                    Code.BAD_REQUEST, f"{number}: this fleet's seats are those that its nodes offer; {how}"
                )
        if request.HasField("attention_workers"):
            wanted = wanted.scaled("attention", request.attention_workers)
        if request.drain:
            self._check_owner(request.drain, request.drain_offer)
            wanted, name = wanted.without(request.drain), f"drain {request.drain}"
        if request.HasField("expert_shards"):
            wanted, name = wanted.scaled("expert", request.expert_shards), "expert_shards"
        if request.HasField("replicas"):
            wanted = wanted.with_replicas(request.replicas)
        return wanted, name

    def _check_owner(self, name: str, offer: str) -> None:
        """A node has no say in a seat that another one serves."""
        seat = self._book.seats.get(name)
        has_holder = seat is not None and seat.live
        owner = seat.offer if seat is not None and has_holder else self.offers.get(name, "")
        if offer and offer != owner:
            whose = f"held by {seat.holder(time.monotonic())}" if seat is not None and has_holder else "another node's"
            raise FleetError(Code.BAD_REQUEST, f"drain: {name} is {whose}")

    def _without(self, seats: Sequence[str]) -> tuple[DesiredState, str]:
        """As ``_scaled``. Whoever ends the nodes of ``seats`` asks first."""
        wanted = self._book.wanted
        for seat in seats:
            wanted = wanted.without(seat, "without")
        more = f" and {len(seats) - _MOST_NAMED} more" if len(seats) > _MOST_NAMED else ""
        return wanted, f"without {', '.join(seats[:_MOST_NAMED])}{more}"
