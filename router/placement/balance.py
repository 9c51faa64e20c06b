"""Evens out what shards carry in each layer: first their numbers of experts, then what those have to do.

Knows nothing of how many copies there are or why. A copy that a shard holds now is moved only where that clearly helps; one
that has to be loaded anyhow may go anywhere.
"""

import heapq

import numpy as np

from .placement_state import Bools, Ints, PlacementState
from .replication import Replication

# A layer whose fullest shard has more than this beside the mean is evened out by moving what is held,
_UNEVEN = 1.05
# by steps of at least this part of the mean.
_STEP = 0.01
# What has to be loaded anyhow is dealt finer.
_FINE_STEP = 0.001
# So many of the least busy shards are asked to relieve the busiest.
_TRIED = 16


class Balance:
    """Moves copies between shards of one class, within the moves that ``limit`` leaves."""

    def __init__(self, deal: PlacementState, limit: Replication) -> None:
        self._deal = deal
        self._limit = limit
        sole_now = deal.now.sum(0) == 0  # [L, E] on no shard yet
        self._unheld: Bools = sole_now

    def level(self) -> None:
        """Equal shards hold equal numbers of experts in every layer, others in proportion to their speed and room."""
        for layer in range(self._deal.wanted.shape[0]):
            while self._level_step(layer, free=True) or self._level_step(layer, free=False):
                pass
        while self._level_totals():
            pass

    def even_out(self, measured: bool) -> None:
        """Less to do for each layer's busiest shard, worst layers first; what is held moves only for ``measured`` loads."""
        for layer in range(self._deal.wanted.shape[0]):
            while self._swap(layer, _FINE_STEP, free=True):
                pass
        if not measured:
            return
        layers = [(-self._unevenness(layer), layer) for layer in range(self._deal.wanted.shape[0])]
        heapq.heapify(layers)
        while layers and -layers[0][0] > _UNEVEN:
            layer = heapq.heappop(layers)[1]
            if self._swap(layer, _STEP, free=False):
                heapq.heappush(layers, (-self._unevenness(layer), layer))

    def _unevenness(self, layer: int) -> float:
        """The busiest shard's time beside what it would be if speed alone decided."""
        deal = self._deal
        load = deal.loads[layer]
        return float((load / deal.speed).max() * deal.speed.sum() / (int(load.sum()) or 1))

    def _level_step(self, layer: int, free: bool) -> bool:
        deal = self._deal
        counts, speed = deal.counts[layer], deal.speed
        filled, next_level = counts / speed, (counts + 1) / speed
        has_room = (deal.totals < deal.capacity) & (counts < deal.limits[layer])
        for target in sorted(has_room.nonzero()[0].tolist(), key=lambda s: (next_level[s], deal.totals[s])):
            sources = (filled > next_level[target] * (1 + 1e-9)).nonzero()[0]
            for source in sorted(
                sources.tolist(), key=lambda s: (-filled[s], -deal.loads[layer, s] / speed[s], -deal.totals[s])
            ):
                movable = self._movable(layer, source, target).nonzero()[0]
                costs = deal.now[source, layer, movable] & ~deal.now[target, layer, movable]
                movable = movable[~costs] if free else movable
                if not len(movable) or not (free or self._limit.may_load(1)):
                    continue
                gap = (deal.loads[layer, source] / speed[source] - deal.loads[layer, target] / speed[target]) / (
                    1 / speed[source] + 1 / speed[target]
                )
                ahead = max(1.0, (filled[source] - filled[target]) / (1 / speed[source] + 1 / speed[target]))
                misfit = abs(deal.share[layer, movable] - gap / ahead)
                deal.move(int(movable[misfit.argmin()]), layer, source, target)
                return True
        return False

    def _level_totals(self) -> bool:
        """A layer's odd expert goes from who holds most in all to who holds least, if it has to be loaded anyhow."""
        deal = self._deal
        filled = deal.totals / deal.speed
        source, target = int(filled.argmax()), int(filled.argmin())
        if (deal.totals[target] + 1) / deal.speed[target] >= filled[source] * (1 - 1e-9):
            return False
        for layer in range(deal.wanted.shape[0]):
            free = self._movable(layer, source, target) & ~deal.now[source, layer]
            if free.any() and self._may_grow(layer, source, target):
                deal.move(int(free.argmax()), layer, source, target)
                return True
        return False

    def _swap(self, layer: int, step: float, free: bool) -> bool:
        """Exchanges two copies, or moves one, so that the busiest shard has less to do, by ``step`` of the mean at least."""
        deal = self._deal
        busy = deal.loads[layer] / deal.speed
        least = step * float(deal.loads[layer].sum() / deal.speed.sum())
        source = int(busy.argmax())
        for target in np.argsort(busy, kind="stable")[:_TRIED].tolist():
            if busy[target] + least >= busy[source]:
                return False
            given = self._movable(layer, source, target).nonzero()[0]
            taken = self._movable(layer, target, source).nonzero()[0]
            if free:
                given, taken = given[~deal.now[source, layer, given]], taken[~deal.now[target, layer, taken]]
            if not len(given):
                continue
            best = self._best_swap(layer, source, target, given, taken)
            if best is None or best[0] > busy[source] - least:
                continue
            _, expert, back = best
            if not free and not self._limit.may_load(2 if back is not None else 1):
                continue
            deal.move(expert, layer, source, target)
            if back is not None:
                deal.move(back, layer, target, source)
            return True
        return False

    def _best_swap(
        self, layer: int, source: int, target: int, given: Ints, taken: Ints
    ) -> tuple[float, int, int | None] | None:
        """(the busier one's time afterwards, the expert that goes, the one that comes back)."""
        deal = self._deal
        share, speed = deal.share[layer], deal.speed
        ideal = (deal.loads[layer, source] / speed[source] - deal.loads[layer, target] / speed[target]) / (
            1 / speed[source] + 1 / speed[target]
        )
        taken = taken[np.argsort(share[taken], kind="stable")]
        back_shares = share[taken]
        if self._may_grow(layer, source, target):
            taken, back_shares = np.concatenate(([-1], taken)), np.concatenate(([0], back_shares))
        if not len(taken):
            return None
        place = np.searchsorted(back_shares, share[given] - ideal)
        pairs = [np.maximum(place - 1, 0), np.minimum(place, len(taken) - 1)]
        goes, comes = np.concatenate((given, given)), np.concatenate(pairs)
        change = share[goes] - back_shares[comes]
        after = np.maximum(
            (deal.loads[layer, source] - change) / speed[source], (deal.loads[layer, target] + change) / speed[target]
        )
        best = int(after.argmin())
        back = int(taken[comes[best]])
        return float(after[best]), int(goes[best]), None if back < 0 else back

    def _may_grow(self, layer: int, source: int, target: int) -> bool:
        """Whether one expert may go over with none coming back, the numbers staying level."""
        deal = self._deal
        counts = deal.counts[layer]
        has_room = deal.totals[target] < min(deal.capacity[target], deal.totals[source])
        has_room &= counts[target] < deal.limits[layer, target]
        level = (counts[target] + 1) / deal.speed[target] <= counts[source] / deal.speed[source] * (1 + 1e-9)
        return bool(has_room and level)

    def _movable(self, layer: int, source: int, target: int) -> Bools:
        """[E]: what ``target`` could hold instead of ``source``."""
        deal = self._deal
        mask: Bools = deal.held[source, layer] & ~deal.held[target, layer]
        if deal.domains[source] != deal.domains[target]:
            mask &= ~deal.held[deal.domains == deal.domains[target], layer].any(0)
        if not deal.same_class[source, target]:
            mask &= self._unheld[layer] & (deal.copies[layer] == 1)
        return mask
