"""Who shall hold which experts, who is asked for them meanwhile, and what each shard is told: pure functions over seats.

Knows nothing of time, gRPC and epochs' numbers. An expert changes its place in four steps, and at every one of them somebody who
holds it is asked for it: 1. a ``Layout`` names the new place; 2. ``orders`` has the new shard load it, while the old one keeps
it; 3. once it is there, ``routes`` sends its work to the new place alone; 4. when no epoch that anybody still uses names the
old place, its ``orders`` leave the expert out.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...membership.epoch import ExpertSet
from ...proto.errors import Code, FleetError
from ...proto.generated import membership_pb2 as pb
from ...router.placement.placement import Shard, place
from ...router.placement.replica_counts import Objective
from .seats import Seat

Mask = npt.NDArray[np.bool_]  # [num_layers, num_experts]
Loads = npt.NDArray[np.float32]  # [num_layers, num_experts]
Targets = Mapping[str, Mask]  # by seat


@dataclass(frozen=True)
class Layout:
    """A placement by seat; ``inputs`` are what it was made of, so that it is made again only for a reason."""

    targets: Targets
    moved: int  # experts that some shard has to load for it
    live: frozenset[str]  # seats that were taken, and so were told their target
    inputs: tuple[object, ...]


@dataclass(frozen=True)
class Question:
    """Where experts shall be; all that the answer depends on."""

    shards: tuple[Shard, ...]
    wanted: Mask
    replicas: float
    loads: Loads | None
    objective: Objective
    max_moves: int | None
    live: frozenset[str]
    inputs: tuple[object, ...]

    def answer(self) -> Layout:
        """For a large model this takes a second; on any thread."""
        placement = place(
            self.shards, self.wanted, self.replicas, self.loads, max_moves=self.max_moves, objective=self.objective
        )
        targets = {shard.seat: held for shard, held in zip(self.shards, placement.held, strict=True)}
        return Layout(targets, placement.moved, self.live, self.inputs)


def question(
    seats: Sequence[Seat],
    wanted: Mask,
    replicas: float,
    before: Layout | None,
    find_loads: Callable[[], Loads | None],
    objective: Objective = "activated",
    max_moves: int | None = None,
) -> Question | None:
    """For ``seats`` that stay. What was planned before counts as held: it is on its way.

    Without ``max_moves``, None as long as seats and replicas are as they were; only then, nobody asks for the loads.
    """
    replicas = min(replicas, max(1, len(seats)))
    inputs = (replicas, *((seat.name, seat.capacity, seat.report.numerics, seat.node, seat.live) for seat in seats))
    if before is not None and before.inputs == inputs and max_moves is None:
        return None
    live = frozenset(seat.name for seat in seats if seat.live)
    shards = tuple(_shard(seat, wanted, before) for seat in seats)
    return Question(shards, wanted, replicas, find_loads(), objective, max_moves, live, inputs)


def check_fits(rooms: Sequence[int], num_experts: int, replicas: float, name: str, with_copies: bool) -> None:
    """``rooms``: how many experts each shard that would be there may hold.

    Raises FleetError BAD_REQUEST when they cannot hold every expert, or ``with_copies`` every copy, with the number that would do.
    """
    if replicas > len(rooms):
        raise FleetError(
            Code.BAD_REQUEST,
            f"{name}: {len(rooms)} expert shards cannot hold {replicas:g} copies of each expert, every one on another; "
            f"at least {math.ceil(replicas)} are needed",
        )
    room = sum(min(each, num_experts) for each in rooms)
    asked = math.ceil(replicas * num_experts) if with_copies else num_experts
    if room >= asked:
        return
    whole = f"experts, {replicas:g} copies of each" if with_copies and room >= num_experts else "experts"
    total = asked if room >= num_experts else num_experts
    what = f"{name}: {len(rooms)} expert shards have room for {room} of {total} {whole}"
    if name == "replicas" and room >= num_experts:
        raise FleetError(Code.BAD_REQUEST, f"{what}; at most {room * 100 // num_experts / 100:g} copies fit")
    needed = math.ceil(total / max(1.0, room / max(1, len(rooms))))
    raise FleetError(Code.BAD_REQUEST, f"{what}; at least {needed} are needed")


def coverage(seats: Iterable[Seat], wanted: Mask) -> float:
    """The share of ``wanted`` that would be held by one of ``seats``, which serve, after the loss of any one node."""
    by_node: dict[str, Mask] = {}
    for seat in seats:
        if seat.held.count:
            node = seat.node or seat.name
            by_node[node] = by_node[node] | seat.held.mask if node in by_node else seat.held.mask
    holders = np.sum(list(by_node.values()), axis=0)  # [num_layers, num_experts] nodes
    left = [int((holders > mask).sum()) for mask in by_node.values()]
    return min(left, default=0) / int(wanted.sum())


def routes(seats: Sequence[Seat], targets: Targets) -> dict[str, ExpertSet]:
    """What each of ``seats``, which serve, is asked for: an expert's new places alone as soon as all of them have it."""
    masks = {seat.name: seat.held.mask for seat in seats if seat.held.count}
    if not masks:
        return {seat.name: ExpertSet.empty() for seat in seats}
    nothing = np.zeros_like(next(iter(masks.values())))
    planned = {name: mask & targets.get(name, nothing) for name, mask in masks.items()}
    arrived = np.logical_or.reduce(list(planned.values()))
    for name, target in targets.items():
        arrived &= ~target | masks.get(name, nothing)
    asked = {name: np.where(arrived, planned[name], masks[name]) for name in masks}
    return {seat.name: ExpertSet.from_mask(asked.get(seat.name, nothing)) for seat in seats}


def order(seat: Seat, target: Mask, in_use: Iterable[Mask]) -> pb.Order:
    """For a live shard; ``in_use`` is what epochs that somebody may still use ask of it."""
    hold = target.copy()
    for mask in in_use:
        hold |= mask
    is_needed = seat.stays or bool(hold.any())
    return pb.Order(hold=ExpertSet.from_mask(hold).to_proto(), leave=not is_needed)


def _shard(seat: Seat, wanted: Mask, before: Layout | None) -> Shard:
    planned = before.targets.get(seat.name) if before is not None and seat.name in before.live else None
    held = seat.held.mask if seat.held.count else np.zeros_like(wanted)
    return Shard(
        seat=seat.name,
        capacity=seat.capacity or int(wanted.sum()),
        numerics=seat.report.numerics,
        domain=seat.node,
        held=held if planned is None else held | planned,
    )
