"""Random small clusters, and what every placement must keep whatever it was asked."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from expertfleet.router.placement.placement import Placement, Shard, place


@dataclass(frozen=True)
class Cluster:
    shards: list[Shard]
    wanted: npt.NDArray[np.bool_]
    replicas: float
    loads: npt.NDArray[np.float64] | None

    def place(self, shards: Sequence[Shard] | None = None, max_moves: int | None = None) -> Placement:
        shards = self.shards if shards is None else shards
        return place(shards, self.wanted, self.replicas, self.loads, max_moves=max_moves)


def draw(seed: int) -> Cluster:
    """Unlike shards in few domains and classes, with too little memory, just enough, or plenty."""
    rng = np.random.default_rng(seed)
    num_shards, num_layers, num_experts = rng.integers((1, 1, 1), (8, 4, 13)).tolist()
    wanted = rng.random((num_layers, num_experts)) < 0.9
    pairs = int(wanted.sum())
    memory, classes = rng.integers(3), ["a", "a", "b", ""] if rng.random() < 0.4 else ["a"]
    shards = []
    for number in range(num_shards):
        capacity = [2 * pairs // num_shards + 3, pairs, 2 * pairs][memory]
        shards.append(
            Shard(
                seat=f"expert-{number}",
                capacity=int(rng.integers(capacity + 1)) if memory < 2 else capacity,
                speed=float(rng.choice([1.0, 1.0, 1.0, 2.0, 4.0])),
                numerics=str(rng.choice(classes)),
                domain=str(rng.choice(["", "x", "y", "z"])),
            )
        )
    replicas = float(rng.choice([1, 1.25, 1.5, 2, 2, 2, 2.5, 3]))
    return Cluster(shards, wanted, replicas, None if rng.random() < 0.4 else rng.lognormal(0, 1, wanted.shape))


def holding(shards: Sequence[Shard], held: Sequence[npt.NDArray[np.bool_]]) -> list[Shard]:
    """The same shards with other experts loaded."""
    return [replace(shard, held=mask) for shard, mask in zip(shards, held, strict=True)]


def check(shards: Sequence[Shard], wanted: npt.NDArray[np.bool_], placement: Placement) -> None:
    """What holds of every placement."""
    held = np.stack(placement.held)  # [S, L, E]
    before = np.stack([np.zeros_like(wanted) if shard.held is None else shard.held for shard in shards])
    assert not (held & ~wanted).any(), "something is held that nobody wants"
    assert np.array_equal(held.any(0) | placement.uncovered, wanted)
    assert not (held.any(0) & placement.uncovered).any()
    assert placement.moved == (held & ~before).sum()
    for shard, mask in zip(shards, held, strict=True):
        assert mask.sum() <= shard.capacity, f"{shard.seat} holds more than fits"
    room = sum(min(shard.capacity, int(wanted.sum())) for shard in shards)
    assert placement.uncovered.sum() == max(0, int(wanted.sum()) - room), "room is left while experts have none"
    for name in {shard.numerics for shard in shards} - {""}:
        mine = held[[shard.numerics == name for shard in shards]].any(0)
        others = held[[shard.numerics not in ("", name) for shard in shards]].any(0)
        assert not (mine & others).any(), "copies of one expert are of two classes"


def can_survive(shards: Sequence[Shard], pairs: int) -> bool:
    """Whether every class alone can hold so many pairs twice that together they hold all; unknown classes promise nothing."""
    classes = {shard.numerics for shard in shards}
    if "" in classes:
        return False
    most = 0
    for name in classes:
        mine = [shard for shard in shards if shard.numerics == name]
        most += max(count for count in range(pairs + 1) if room_for(mine, count, 2))
    return most >= pairs


def room_for(shards: Sequence[Shard], pairs: int, copies: int) -> bool:
    """Whether the domains can hold ``copies`` copies of each pair, none holding a pair twice."""
    rooms: dict[str, int] = {}
    for shard in shards:
        domain = shard.domain or f"of its own: {shard.seat}"
        rooms[domain] = rooms.get(domain, 0) + shard.capacity
    return sum(min(room, pairs) for room in rooms.values()) >= copies * pairs
