"""How many expert shards the measured work wants: for an autoscaler to read, the controller itself starts nobody.

Knows nothing of seats' owners, and of the clock only what it is told. Shards say how many seconds they have computed; over the last
minute that is a busy share of each, and ``wanted_shards`` is so many that their mean would be TARGET. What is left above it is room
for what comes between two looks of an autoscaler, and for unevenness.
"""

import math
from collections import deque
from collections.abc import Iterable, Sequence

TARGET = 0.7
WINDOW_S = 60.0


def wanted_shards(busy: Sequence[float], capacities: Sequence[int], num_experts: int, replicas: float) -> int:
    """At least as many shards of the smallest capacity as hold every copy; a capacity of 0 is as many as there are. 0: not known."""
    if not busy:
        return 0
    smallest = min((capacity or num_experts for capacity in capacities), default=num_experts)
    fewest = max(math.ceil(replicas), math.ceil(num_experts * replicas / min(smallest, num_experts)))
    return max(fewest, math.ceil(round(sum(busy) / TARGET, 6)))


class BusyShares:
    """What each process said it had computed, over the last WINDOW_S."""

    def __init__(self) -> None:
        self._said: dict[int, deque[tuple[float, float]]] = {}  # by lease

    def note(self, lease_id: int, compute_s: float, now: float) -> None:
        said = self._said.setdefault(lease_id, deque())
        said.append((now, compute_s))
        while now - said[0][0] > WINDOW_S:
            said.popleft()

    def shares(self, lease_ids: Iterable[int]) -> list[float]:
        """Of those that have been heard for half the window at least; others are forgotten with their lease."""
        self._said = {lease_id: self._said[lease_id] for lease_id in lease_ids if lease_id in self._said}
        return [_share(said) for said in self._said.values() if said[-1][0] - said[0][0] >= WINDOW_S / 2]


def _share(said: Sequence[tuple[float, float]]) -> float:
    (began, before), (ended, after) = said[0], said[-1]
    return min(1.0, (after - before) / (ended - began))
