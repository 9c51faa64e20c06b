"""``[scaling]``: a fleet that grows and shrinks at random, again and again.

Knows nothing of steps. In each cycle the fleet grows to a size that the seed draws, and comes back to its first size at once or by
drains of single shards; expert-0 stays, so that one shard lives throughout.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from expertfleet.cluster.controller.desired_state import DesiredState
from expertfleet.settings.option import within

Change = int | str  # expert shards to scale to, or a seat to drain


@dataclass(frozen=True)
class Scaling:
    """``most`` expert shards at the top of a cycle; after ``baseline`` cycles files and memory are measured for the first time."""

    most: int
    cycles: int = 20
    baseline: int = 5

    def __post_init__(self) -> None:
        within("cycles", self.cycles, 2, 10_000)
        within("baseline", self.baseline, 1, self.cycles - 1)

    def check_in(self, expert_shards: int, is_scalable: bool) -> None:
        if not is_scalable:
            raise ValueError("scaling: it is not for a fleet of machines or nodes")
        try:
            within("most", self.most, expert_shards + 1, 64)
        except ValueError as error:
            raise ValueError(f"scaling.{error}") from None

    def draw(self, rng: random.Random, expert_shards: int) -> Iterator[tuple[Change, ...]]:
        """The changes of each cycle."""
        wanted = DesiredState.first(1, expert_shards, 1)
        for _ in range(self.cycles):
            changes: list[Change] = [rng.randint(expert_shards + 1, self.most)]
            wanted = wanted.scaled("expert", int(changes[0]))
            if rng.random() < 0.5:
                changes.append(expert_shards)
                wanted = wanted.scaled("expert", expert_shards)
            while len(wanted.expert) > expert_shards:
                changes.append(seat := rng.choice(wanted.seats("expert")[1:]))
                wanted = wanted.without(seat)
            yield tuple(changes)
