"""Reconciles the fleet with its desired state, step by step: the next epoch, and each shard's order.

Knows nothing of gRPC and clocks (the caller says what time it is). All of it follows from the book of seats, so a controller that
starts anew comes to the same: until the fleet is whole for the first time, or a lease has passed, it commits nothing half and takes
nothing from any shard.
"""

import functools
import math
from collections.abc import Callable

import numpy as np

from ...membership.epoch import NO_EPOCH, Epoch, EpochId
from ...proto.generated import membership_pb2 as pb
from ...router.placement.expert_loads import Load
from .assignment import Layout, Loads, Mask, Question, coverage, order, question, routes
from .placement_settings import PlacementSettings
from .seats import Seat, SeatBook

# Of all experts, moved at most by one rebalancing.
_MOVED_SHARE = 0.005


class Reconciler:
    def __init__(
        self, book: SeatBook, incarnation: int, gathered_at: float, placing: PlacementSettings | None = None
    ) -> None:
        """Whoever served before has registered again by ``gathered_at``."""
        self.num_layouts = self.num_moved = 0  # adopted, and the experts that some shard had to load for them
        self._placing = placing or PlacementSettings()
        self._book = book
        self._incarnation = incarnation
        self._gathered_at = gathered_at
        self._was_complete = False
        self._layout: Layout | None = None
        self._newest = Epoch(NO_EPOCH, book.shape.fingerprint, book.shape.dtype, (), (), complete=False)
        self._in_use: list[Epoch] = []  # published, and perhaps still used by somebody

    def next_epoch(self, now: float) -> Epoch | None:
        """What is to be published, if anything has changed; from then on it is in use."""
        epoch = self._picture()
        self._was_complete = self._was_complete or epoch.complete
        gathering = self._newest.id == NO_EPOCH and not epoch.complete and now < self._gathered_at
        if gathering or epoch.same_members(self._newest):
            return None
        self._newest = epoch
        self._in_use.append(epoch)
        return epoch

    def forget_before(self, epoch: EpochId) -> None:
        """Nobody uses older epochs any more."""
        self._in_use = [each for each in self._in_use if each.id >= epoch]

    def orders(self, now: float) -> dict[int, pb.Order]:
        """By lease."""
        gathering = not self._was_complete and now < self._gathered_at
        orders: dict[int, pb.Order] = {}
        for seat in self._book.seats.values():
            if seat.live and seat.role == "attention":
                in_epoch = any(member.seat == seat.name for member in self._newest.attention)
                orders[seat.lease_id] = pb.Order(leave=not seat.wanted and not in_epoch)
            elif seat.live and seat.role == "expert" and self._layout is not None:
                # What somebody holds is left alone until it is known who else holds what.
                is_left_alone = gathering and seat.held.count
                target = seat.held.mask if is_left_alone else self._target(seat)
                orders[seat.lease_id] = order(seat, target, self._asked_of(seat))
        return orders

    def question(self) -> Question | None:
        """Where experts shall be, if that must be asked anew; the answer is for ``adopt``.

        Until the fleet was whole for the first time, seats that nobody has taken yet are counted on.
        """
        staying = self._staying()
        return self._question(staying, self._loads) if staying else None

    def rebalancing(self) -> Question | None:
        """The same for a few experts, and copies of them, that the loads of late want elsewhere. Only when all is at rest."""
        loads = self._loads()
        if loads is None or not self.settled():
            return None
        return self._question(self._staying(), lambda: loads, max(1, int(_MOVED_SHARE * self._all_experts.sum())))

    def adopt(self, layout: Layout) -> None:
        self._layout = layout
        self.num_layouts += 1
        self.num_moved += layout.moved

    def replicas(self) -> float:
        """Copies of each expert that are wanted now. How much memory there is, is known when everybody is there."""
        least, staying = self._book.wanted.replicas, self._staying()
        if not all(seat.live for seat in staying):
            return least
        num_experts = int(self._all_experts.sum())
        return self._placing.replicas(least, [seat.capacity or num_experts for seat in staying], num_experts)

    def shortfall(self) -> str:
        """Why fewer copies than are wanted can be held, in one line; empty where all can."""
        wanted, there = self._book.wanted.replicas, len(self._book.wanted.expert)
        if not there or wanted <= there:
            return ""
        what = (
            f"replicas: {wanted:g} copies of each expert are wanted, every one on another shard, and {there} are there"
        )
        return f"{what}: start {math.ceil(wanted) - there} more, or expertfleet scale --replicas {there}"

    def settled(self) -> bool:
        """Whether everybody holds what was planned and is asked for it, and nobody is on the way in or out."""
        if self._layout is None or not self._newest.complete or len(self._in_use) > 1:
            return False
        workers = [seat for seat in self._book.seats.values() if seat.role != "gateway"]
        shards = self._book.of_role("expert")
        return all(seat.wanted and seat.serves and seat.stays for seat in workers) and all(
            np.array_equal(seat.held.mask, self._target(seat)) for seat in shards
        )

    def coverage(self) -> float:
        """The share of the experts that would survive the loss of any one node now."""
        return coverage((seat for seat in self._book.of_role("expert") if seat.serves), self._all_experts)

    def num_planned(self, seat: Seat) -> int:
        return int(self._target(seat).sum()) if self._layout is not None else 0

    def _staying(self) -> list[Seat]:
        return [seat for seat in self._book.of_role("expert") if seat.stays and (seat.live or not self._was_complete)]

    def _question(
        self, staying: list[Seat], find_loads: Callable[[], Loads | None], max_moves: int | None = None
    ) -> Question | None:
        objective = self._placing.objective
        return question(staying, self._all_experts, self.replicas(), self._layout, find_loads, objective, max_moves)

    def _loads(self) -> Loads | None:
        """How often each expert is activated, or by how many rows it is asked; None while nobody has asked any."""
        told = [seat.load for seat in self._book.of_role("attention") if seat.live and seat.load is not None]
        if not told:
            return None
        load = Load.merge(told)
        asked = load.routes if self._placing.objective == "tokens" else load.activations
        return asked if asked.any() else None

    def _target(self, seat: Seat) -> Mask:
        planned = self._layout.targets.get(seat.name) if self._layout is not None else None
        return planned if planned is not None else np.zeros_like(self._all_experts)

    def _asked_of(self, seat: Seat) -> list[Mask]:
        """What every epoch in use asks of the process that sits there; nothing once nobody is left to ask."""
        if self._was_complete and not any(each.live for each in self._book.of_role("attention")):
            return []
        members = (member for epoch in self._in_use for member in epoch.experts)
        return [member.held.mask for member in members if (member.seat, member.address) == (seat.name, seat.address)]

    def _picture(self) -> Epoch:
        shards = [seat for seat in self._book.of_role("expert") if seat.serves]
        asked = routes(shards, self._layout.targets if self._layout is not None else {})
        return Epoch(
            EpochId(self._incarnation, self._newest.id.counter + 1),
            self._book.shape.fingerprint,
            self._book.shape.dtype,
            experts=tuple(seat.member(asked[seat.name]) for seat in shards if asked[seat.name].count),
            attention=tuple(seat.member() for seat in self._book.of_role("attention") if seat.serves and seat.stays),
            complete=not self._book.missing(),
        )

    @functools.cached_property
    def _all_experts(self) -> Mask:
        return self._book.shape.all_experts()
