"""How many copies each expert gets: a budget of copies dealt to those that are asked most.

Knows nothing of shards. Within a layer the next copy goes to the expert whose copies each have most to do. What has a copy
already keeps it unless another needs it clearly more, so that loads that wander a little move nothing.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt

Objective = Literal["activated", "tokens"]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# A dispatch's routes for which activations are evened out: 16 tokens that each ask 8 experts.
ROUTES_PER_DISPATCH = 128
# How much more a copy must relieve its new expert than its old one misses it.
_CLEARLY = 1.25
# Weights are whole numbers of which an average expert has this many.
_UNIT = 1 << 20


def weigh(loads: Floats | None, wanted: Bools, objective: Objective) -> Ints:
    """[L, E]: what each expert means for its shard, on average 2^20 in every layer; at least 1 where it is wanted.

    For "tokens" that is its share of the layer's routes; for "activated" the chance that a dispatch asks for it at all.
    """
    if loads is None:
        return np.where(wanted, _UNIT, 0)
    asked = np.where(wanted, loads, 0.0)
    asked[asked.sum(1) == 0] = 1.0  # of a layer that was never asked nothing is known
    share = np.where(wanted, asked, 0.0)
    share /= np.maximum(share.sum(1, keepdims=True), np.finfo(np.float64).tiny)
    if objective == "activated":
        share = 1.0 - (1.0 - share) ** ROUTES_PER_DISPATCH
    mean = share.sum(1, keepdims=True) / np.maximum(wanted.sum(1, keepdims=True), 1)
    weights = np.rint(share / np.where(mean > 0, mean, 1.0) * _UNIT).astype(np.int64)
    return np.where(wanted, np.maximum(weights, 1), 0)


def count_copies(
    weights: Ints,  # [L, E], 0 where not wanted
    now: Ints,  # [L, E] copies that are there already
    sole: Ints,  # [L, E] how many pairs whoever holds this one holds alone: of equals, theirs come first
    most: Ints,  # [L, E] no more copies than that
    replicas: float,
    room: int,
    changes: int | None,
) -> Ints:
    """[L, E]: ``replicas`` copies on average, as far as ``room`` for so many copies in all allows.

    Every pair has the whole part of ``replicas`` first. At most ``changes`` copies go from one pair to another.
    """
    wanted = weights > 0
    num_pairs = int(wanted.sum())
    budget = min(round(replicas * num_pairs), max(room, num_pairs))
    reached = wanted.sum(1).cumsum() * budget // max(1, num_pairs)
    target = np.zeros_like(weights)
    for layer, (weight, total) in enumerate(zip(weights, np.diff(reached, prepend=0).tolist(), strict=True)):
        experts = wanted[layer].nonzero()[0]
        if len(experts):
            row = _Row(weight[experts], now[layer, experts], sole[layer, experts], most[layer, experts])
            row.fill(int(replicas), total)
            changes = row.exchange(changes)
            target[layer, experts] = row.copies
    return target


class _Row:
    """One layer's experts that are wanted."""

    def __init__(self, weights: Ints, now: Ints, sole: Ints, most: Ints) -> None:
        self._weights = weights.astype(np.float64)
        self._now = now
        self._sole = sole * (0.25 / (1 + int(sole.max())))
        self._most = most
        self.copies: Ints = now

    def fill(self, whole: int, total: int) -> None:
        """``whole`` copies of each and the rest of ``total`` to the most asked; where it does not suffice, none has more."""
        if total < whole * len(self._now):
            self._most = np.minimum(self._most, whole)
        self._base = np.minimum(self._most, min(whole, total // len(self._now)))
        self.copies = np.minimum(np.maximum(self._now, self._base), self._most)
        for _ in range(int(self.copies.sum()) - total):
            self.copies[self._least_missed()] -= 1
        for _ in range(total - int(self.copies.sum())):
            if (self.copies >= self._most).all():
                break
            self.copies[self._most_needed()] += 1

    def exchange(self, changes: int | None) -> int | None:
        """Takes copies from those that hardly need them for those that clearly do; returns how many changes are left."""
        while changes is None or changes > 0:
            taker, giver = self._most_needed(), self._least_missed()
            if self._need()[taker] <= _CLEARLY * self._loss()[giver]:
                break
            self.copies[taker] += 1
            self.copies[giver] -= 1
            changes = None if changes is None else changes - 1
        return changes

    def _need(self) -> Floats:
        return np.where(self.copies < self._most, self._weights / self.copies, -np.inf)

    def _loss(self) -> Floats:
        """What each copy would have to do with one copy less."""
        return np.where(self.copies > self._base, self._weights / np.maximum(1, self.copies - 1), np.inf)

    def _most_needed(self) -> int:
        return int((self._need() + self._sole).argmax())

    def _least_missed(self) -> int:
        return int((self._loss() + self._sole).argmin())
