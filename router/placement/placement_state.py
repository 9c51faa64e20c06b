"""A placement under construction: which shard holds which replicas, what each carries, and where one more replica would go best.

Knows nothing of why a replica is placed. Letters: S shards, L layers, E experts; a *pair* is a (layer, expert), a *zone* is
what no two replicas of a pair shall share: a failure domain, or failing that a shard.
"""

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
NOWHERE = -1


class PlacementState:
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
        self.same_class: Bools = classes[:, None] == classes
        self.limits = _layer_limits(capacity, wanted)  # [L, S]
        self._afresh = not self.held.any()
        by_layer = self.held.transpose(1, 0, 2).astype(np.float32)  # [L, S, E]
        self._common = by_layer @ by_layer.transpose(0, 2, 1)  # [L, S, S] pairs that two shards have in common
        self._together = self._common.sum(0)  # [S, S]
        self._expected: list[int] = [0] * L  # copies there will be in each layer
        self._load_unit: list[float] = [1.0] * L
        self._dealt: list[int] = self.counts.sum(1).tolist()
        self._unit = 1.0 / max(1, int(wanted.sum()))
        # Of one layer at a time: how full each shard is for it, and who has room.
        self._view: tuple[int, bool] = (-1, False)
        self._filled = np.zeros(S)
        self._open = np.zeros(S, dtype=np.bool_)
        self._within = np.zeros(S, dtype=np.bool_)

    @property
    def num_shards(self) -> int:
        return len(self.capacity)

    def aim_at(self, target: Ints, weights: Ints) -> None:
        """``target`` [L, E] copies of pairs that mean ``weights``; whole numbers, so that sums have no order of their terms."""
        self.share = weights // np.maximum(1, target)
        self.loads = np.einsum("sle,le->ls", self.held, self.share)
        self._expected = target.sum(1).tolist()
        self._load_unit = [1.0 / max(1, total) for total in weights.sum(1).tolist()]
        self._view = (-1, False)

    def add(self, shard: int, layer: int, expert: int) -> None:
        if self.copies[layer, expert]:
            self._count_common(shard, layer, expert, 1)
        self._change(shard, layer, expert, 1)

    def drop(self, shard: int, layer: int, expert: int) -> None:
        self._change(shard, layer, expert, -1)
        if self.copies[layer, expert]:
            self._count_common(shard, layer, expert, -1)

    def move(self, expert: int, layer: int, source: int, target: int) -> None:
        self.drop(source, layer, expert)
        self.add(target, layer, expert)

    def _change(self, shard: int, layer: int, expert: int, step: int) -> None:
        self.held[shard, layer, expert] = step > 0
        self.copies[layer, expert] += step
        self.totals[shard] += step
        self.counts[layer, shard] += step
        self.loads[layer, shard] += step * self.share[layer, expert]
        self._dealt[layer] += step
        if not self.now[shard, layer, expert]:
            self.moved += step
        if self._view[0] == layer:
            self._look(shard)
        else:
            self._view = (-1, False)

    def _count_common(self, shard: int, layer: int, expert: int, step: int) -> None:
        others = step * self.held[:, layer, expert]
        self._together[shard] += others
        self._together[:, shard] += others
        self._common[layer, shard] += others
        self._common[layer, :, shard] += others

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
        the least to do, then the fewest pairs in common with who holds it already, and the fewest in all."""
        # The last round of a layer goes to some shards only: to those with less memory taken, if nothing is there yet.
        last_round = self._afresh and self._expected[layer] - self._dealt[layer] < self.num_shards
        if self._view != (layer, last_round):
            self._view = (layer, last_round)
            for shard in range(self.num_shards):
                self._look(shard)
        score = self._filled
        for holder in self.holders(layer, expert) if self.copies[layer, expert] else ():
            score = score + 1e-9 * (self._common[layer, holder] + self._together[holder]).astype(np.float64)
        for room in (self._within, self._open):
            mask = allowed & room
            found = int(np.where(mask, score, np.inf).argmin())
            if mask[found]:
                return found
        return NOWHERE

    def _look(self, shard: int) -> None:
        layer, last_round = self._view
        count, total = int(self.counts[layer, shard]), int(self.totals[shard])
        load, taken = int(self.loads[layer, shard]) * self._load_unit[layer], total * self._unit
        second, third = (taken, load) if last_round else (load, taken)
        # NOTE: one sum instead of a sort by several keys: each term is too small to outweigh the one before it.
        self._filled[shard] = (count + 1 + 0.5 * second) / float(self.speed[shard]) + 1e-6 * third
        self._open[shard] = total < self.capacity[shard]
        self._within[shard] = self._open[shard] and count < self.limits[layer, shard]


def _layer_limits(capacity: Ints, wanted: Bools) -> Ints:
    """[L, S]: each layer's part of each shard's capacity, so that a small shard is not filled by the first layers.

    The parts of a shard sum to its capacity; shards round up in different layers.
    """
    S = len(capacity)
    reached = wanted.sum(1).cumsum() / max(1, int(wanted.sum()))  # [L]
    steps = np.floor(np.outer(np.concatenate(([0.0], reached)), capacity) + (np.arange(S) + 0.5) / max(1, S))
    limits: Ints = np.diff(steps, axis=0).astype(np.int64)
    return limits


def protected(deal: PlacementState, numerics: int, copies: int) -> int:
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
