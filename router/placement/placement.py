"""Which expert shard holds which experts: a pure function of the shards, what is wanted, and how often it is asked.

Knows nothing of machines, models or time, so every process that asks gets the same answer. 1. what is held is kept where it
can be; 2. everything wanted gets a first copy, then further ones, in as many failure domains; 3. numbers and loads are
evened out, with as few experts loaded anew as will do.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .balance import Balance
from .placement_state import Bools, Floats, Ints, PlacementState
from .replica_counts import Objective, count_copies, weigh
from .replication import Replication

# Evening out one layer can open a way in another; what is dealt is dealt again until nothing moves, which is soon.
_PASSES = 8


@dataclass(frozen=True)
class Shard:
    """What a placement has to know of one expert shard."""

    seat: str
    capacity: int  # most (layer, expert) pairs that fit into its memory
    speed: float = 1.0  # work per second, relative to the other shards
    numerics: str = ""  # class of bits; "" is not known yet and fits any
    domain: str = ""  # shards of one failure domain are lost together; "" is one of its own
    held: npt.NDArray[np.bool_] | None = None  # [L, E] what it holds now; None is nothing


@dataclass(frozen=True)
class Placement:
    """Who shall hold what."""

    held: tuple[npt.NDArray[np.bool_], ...]  # [L, E] for each shard, in the order given
    uncovered: npt.NDArray[np.bool_]  # [L, E] wanted, but no shard has room for it
    moved: int  # pairs that some shard has to load
    domains: tuple[int, ...]  # of each shard, numbered

    def coverage(self) -> float:
        """The smallest part of the wanted pairs that is left when any one failure domain is lost."""
        held = np.stack(self.held) if self.held else np.zeros((0, *self.uncovered.shape), dtype=np.bool_)
        num_wanted = int((held.any(0) | self.uncovered).sum())
        left = [int(held[np.array(self.domains) != domain].any(0).sum()) for domain in sorted(set(self.domains))]
        return min(left, default=0) / num_wanted if num_wanted else 1.0


def place(
    shards: Sequence[Shard],
    wanted: npt.NDArray[np.bool_],  # [L, E]
    replicas: float = 1.0,
    loads: npt.NDArray[np.floating] | None = None,  # [L, E] how often each expert is asked; None is equally often
    *,
    max_moves: int | None = None,
    objective: Objective = "activated",
) -> Placement:
    """Deals ``replicas`` copies of every wanted expert on average, the additional ones to those asked most.

    What nobody holds is placed whatever ``max_moves`` says. ``objective`` names what is evened out: the experts that a
    dispatch activates on each shard, as each is read once, or the routes.
    """
    _check(shards, wanted, replicas, loads, max_moves, objective)
    order = sorted(range(len(shards)), key=lambda index: shards[index].seat)
    ranked = [shards[index] for index in order]
    before = _stack([shard.held for shard in ranked], wanted)
    held = before & wanted
    weights = weigh(None if loads is None else np.asarray(loads, dtype=np.float64), wanted, objective)
    for _ in range(_PASSES if ranked and wanted.any() else 0):
        deal = _begin(ranked, before if max_moves is not None else held, wanted)
        _deal(deal, weights, replicas, max_moves, measured=loads is not None)
        settled = max_moves is not None or np.array_equal(deal.held, held)
        held = deal.held
        if settled:
            break
    domains = _domains(ranked)
    places = [order.index(index) for index in range(len(shards))]
    return Placement(
        held=tuple(held[place] for place in places),
        uncovered=wanted & ~held.any(0),
        moved=int((held & ~before).sum()),
        domains=tuple(int(domains[place]) for place in places),
    )


def _deal(deal: PlacementState, weights: Ints, replicas: float, max_moves: int | None, measured: bool) -> None:
    replication = Replication(deal, int(replicas), max_moves)
    replication.keep()
    target = _targets(deal, weights, replicas, max_moves)
    deal.aim_at(target, weights)
    replication.trim(target)
    replication.cover()
    replication.change_class()
    if not deal.same_class.all():  # how many copies there can be depends on the class that a pair has come to
        target = _targets(deal, weights, replicas, max_moves)
        deal.aim_at(target, weights)
        replication.trim(target)
    replication.replicate(target)
    balance = Balance(deal, replication)
    balance.level()
    balance.even_out(measured)


def _targets(deal: PlacementState, weights: Ints, replicas: float, max_moves: int | None) -> Ints:
    sizes: Ints = (deal.same_class & (deal.capacity > 0)).sum(1)  # [S] shards of each one's class
    most = np.where(deal.held, sizes[:, None, None], 0).max(0)
    most = np.maximum(1, np.where(deal.copies > 0, most, sizes.max()))
    sole = (deal.held & (deal.copies == 1)).sum((1, 2))  # [S]
    of_holder = np.where(deal.held, sole[:, None, None], 0).max(0)
    room = int(np.minimum(deal.capacity, int(deal.wanted.sum())).sum())
    changes = None if max_moves is None else max(0, max_moves - int((deal.wanted & (deal.copies == 0)).sum()))
    return count_copies(weights, deal.copies, of_holder, most, replicas, room, changes)


def _begin(shards: Sequence[Shard], held: Bools, wanted: Bools) -> PlacementState:
    capacity = np.array([shard.capacity for shard in shards], dtype=np.int64)
    speed: Floats = np.array([shard.speed for shard in shards], dtype=np.float64)
    return PlacementState(held, capacity, speed, _classes(shards, held), _domains(shards), wanted)


def _stack(held: Sequence[Bools | None], wanted: Bools) -> Bools:
    """[S, L, E]"""
    stacked = np.zeros((len(held), *wanted.shape), dtype=np.bool_)
    for number, mask in enumerate(held):
        if mask is not None:
            stacked[number] = mask
    return stacked


def _domains(shards: Sequence[Shard]) -> Ints:
    names = [(shard.domain, "") if shard.domain else ("", shard.seat) for shard in shards]
    numbers = {name: number for number, name in enumerate(sorted(set(names)))}
    return np.array([numbers[name] for name in names], dtype=np.int64)


def _classes(shards: Sequence[Shard], held: Bools) -> Ints:
    """Numbers for the classes of numerics. An unknown one counts as that with which it shares most of what it holds, or
    else as the one with the most room."""
    names = sorted({shard.numerics for shard in shards if shard.numerics})
    if not names:
        return np.zeros(len(shards), dtype=np.int64)
    known = np.array([names.index(shard.numerics) if shard.numerics else -1 for shard in shards])
    rooms = [sum(shard.capacity for shard in shards if shard.numerics == name) for name in names]
    held_by = [held[known == number].any(0) for number in range(len(names))]
    for index in (known < 0).nonzero()[0].tolist():
        shared = [int((held[index] & mask).sum()) for mask in held_by]
        known[index] = max(range(len(names)), key=lambda number: (shared[number], rooms[number], -number))
    return known.astype(np.int64)


def _check(
    shards: Sequence[Shard],
    wanted: Bools,
    replicas: float,
    loads: npt.NDArray[np.floating] | None,
    max_moves: int | None,
    objective: str,
) -> None:
    if wanted.ndim != 2:
        raise ValueError(f"wanted: shape {wanted.shape}, must be [num_layers, num_experts]")
    if not (math.isfinite(replicas) and replicas >= 1):
        raise ValueError(f"replicas: {replicas}, must be a finite number of at least 1")
    if loads is not None:
        if loads.shape != wanted.shape:
            raise ValueError(f"loads: shape {loads.shape}, must be that of wanted, {wanted.shape}")
        if not (np.isfinite(loads).all() and (loads >= 0).all()):
            raise ValueError(f"loads: {loads.min()} to {loads.max()}, must be finite and at least 0")
    if max_moves is not None and max_moves < 0:
        raise ValueError(f"max_moves: {max_moves}, must be at least 0")
    if objective not in ("activated", "tokens"):
        raise ValueError(f"objective: {objective!r}, must be 'activated' or 'tokens'")
    seats: set[str] = set()
    for shard in shards:
        if shard.seat in seats:
            raise ValueError(f"shards: seat {shard.seat!r} twice, every shard has a seat of its own")
        seats.add(shard.seat)
        if shard.capacity < 0:
            raise ValueError(f"capacity: {shard.capacity} of {shard.seat}, must be at least 0")
        if not (math.isfinite(shard.speed) and shard.speed > 0):
            raise ValueError(f"speed: {shard.speed} of {shard.seat}, must be a finite number above 0")
        if shard.held is not None and shard.held.shape != wanted.shape:
            raise ValueError(f"held: shape {shard.held.shape} of {shard.seat}, must be that of wanted, {wanted.shape}")
