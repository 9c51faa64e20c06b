"""A deal under way: which shard holds which copies, what each carries, and where one more copy would go best.

Knows nothing of why a copy is dealt. Letters: S shards, L layers, E experts; a *pair* is a (layer, expert), a *zone* is
what no two copies of a pair shall share: a failure domain, or failing that a shard.
"""

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
NOWHERE = -1


class Deal:
    """Begins with what is held now; ``add`` and ``drop`` keep every sum true."""

    def __init__(self, held: Bools, capacity: Ints, speed: Floats, classes: Ints, domains: Ints, wanted: Bools) -> None:
        S, L, _ = held.shape
        self.now = held  # [S, L, E]
        self.held = held & wanted
        self.wanted = wanted
        self.capacity, self.speed, self.classes, self.domains = capacity, speed, classes, domains
        self.copies: Ints = self.held.sum(0)  # [L, E]
        self.share = np.zeros(wanted.shape, dtype=np.int64)  # [L, E] what one copy of each pair has to do
        self.totals: Ints = self.held.sum((1, 2))  # [S]
        self.counts: Ints = self.held.sum(2).T.copy()  # [L, S]
        self.loads = np.zeros((L, S), dtype=np.int64)
        self.moved = int((self.held & ~self.now).sum())
        self.together = np.einsum("sle,tle->st", self.held, self.held, dtype=np.int64)  # pairs two shards both hold
        self.same_class: Bools = classes[:, None] == classes
        self.limits = _layer_limits(capacity, wanted)  # [L, S]
        self._afresh = not held.any()
        self._expected: list[int] = [0] * L  # copies there will be in each layer
        self._scale = 1.0 / max(1, int(wanted.sum()))

    @property
    def num_shards(self) -> int:
        return len(self.capacity)

    def aim_at(self, target: Ints, weights: Ints) -> None:
        """``target`` [L, E] copies of pairs that mean ``weights``; whole numbers, so that sums have no order of their terms."""
        self.share = weights // np.maximum(1, target)
        self.loads = np.einsum("sle,le->ls", self.held, self.share)
        self._expected = target.sum(1).tolist()

    def add(self, shard: int, layer: int, expert: int) -> None:
        self.together[shard] += self.held[:, layer, expert]
        self.together[:, shard] += self.held[:, layer, expert]
        self._change(shard, layer, expert, 1)

    def drop(self, shard: int, layer: int, expert: int) -> None:
        self._change(shard, layer, expert, -1)
        self.together[shard] -= self.held[:, layer, expert]
        self.together[:, shard] -= self.held[:, layer, expert]

    def move(self, expert: int, layer: int, source: int, target: int) -> None:
        self.drop(source, layer, expert)
        self.add(target, layer, expert)

    def _change(self, shard: int, layer: int, expert: int, step: int) -> None:
        self.held[shard, layer, expert] = step > 0
        self.copies[layer, expert] += step
        self.totals[shard] += step
        self.counts[layer, shard] += step
        self.loads[layer, shard] += step * self.share[layer, expert]
        if not self.now[shard, layer, expert]:
            self.moved += step

    def holders(self, layer: int, expert: int) -> list[int]:
        found: list[int] = self.held[:, layer, expert].nonzero()[0].tolist()
        return found

    def suitable(self, layer: int, expert: int, zones: Ints) -> Bools:
        """[S]: who may hold one more copy, room or not: of the copies' class, and in none of their ``zones``."""
        mask = np.ones(self.num_shards, dtype=np.bool_)
        for holder in self.holders(layer, expert):
            mask &= self.same_class[holder] & (zones != zones[holder])
        return mask

    def emptiest(self, layer: int, expert: int, allowed: Bools) -> int:
        """Who of ``allowed`` [S] takes one more copy: the one with the fewest experts in this layer for its speed, then
        the least to do, then the fewest in all, then the fewest pairs in common with who holds it already."""
        mask = allowed & (self.totals < self.capacity)
        within = mask & (self.counts[layer] < self.limits[layer])
        mask = within if within.any() else mask
        if not mask.any():
            return NOWHERE
        loads, totals = self.loads[layer] / (int(self.loads[layer].sum()) or 1), self._scale * self.totals
        # The last round of a layer goes to some shards only: to those with less memory taken, if nothing is there yet.
        last_round = self._afresh and self._expected[layer] - int(self.counts[layer].sum()) < self.num_shards
        second, third = (totals, loads) if last_round else (loads, totals)
        # NOTE: one sum instead of a sort by four keys: each term is too small to outweigh the one before it.
        score = (self.counts[layer] + 1 + 0.5 * second) / self.speed + 1e-6 * third
        for holder in self.holders(layer, expert):
            score += 1e-9 * self._scale * self.together[holder]
        score[~mask] = np.inf
        return int(score.argmin())


def _layer_limits(capacity: Ints, wanted: Bools) -> Ints:
    """[L, S]: each layer's part of each shard's capacity, so that a small shard is not filled by the first layers.

    The parts of a shard sum to its capacity; shards round up in different layers.
    """
    S = len(capacity)
    reached = wanted.sum(1).cumsum() / max(1, int(wanted.sum()))  # [L]
    steps = np.floor(np.outer(np.concatenate(([0.0], reached)), capacity) + (np.arange(S) + 0.5) / max(1, S))
    limits: Ints = np.diff(steps, axis=0).astype(np.int64)
    return limits


def protected(deal: Deal, numerics: int, copies: int) -> int:
    """How many pairs can have ``copies`` copies in as many domains of one class of numerics.

    It is the largest n that the domains have room for if none counts more than n, which holds one copy of each.
    """
    mine = deal.classes == numerics
    rooms = [int(deal.capacity[mine & (deal.domains == domain)].sum()) for domain in np.unique(deal.domains[mine])]
    least, most = 0, int(deal.wanted.sum())
    while least < most:
        tried = (least + most + 1) // 2
        if sum(min(room, tried) for room in rooms) >= copies * tried:
            least = tried
        else:
            most = tried - 1
    return least


def pairs_of(mask: Bools, key: Ints) -> list[tuple[int, int]]:
    """The pairs of ``mask`` [L, E], layer by layer, those with the largest ``key`` first."""
    layers, experts = mask.nonzero()
    order = np.lexsort((experts, -key[layers, experts], layers))
    return list(zip(layers[order].tolist(), experts[order].tolist(), strict=True))
