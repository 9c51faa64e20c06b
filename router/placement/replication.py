"""Brings every pair to its number of copies: what is held is kept where it can be, then one round of copies after the other.

Knows nothing of balance beyond asking the deal who is emptiest. A pair that finds no room takes that of a spare copy of
another pair, or another pair's copy moves on to make room for it; with equal needs this reaches every pair that can be reached.
"""

import numpy as np
import numpy.typing as npt

from .placement_state import NOWHERE, Bools, Ints, PlacementState, pairs_of, protected


class Replication:
    """Deals copies up to ``target`` [L, E], loading at most ``max_moves`` beyond first copies."""

    def __init__(self, deal: PlacementState, whole: int, max_moves: int | None) -> None:
        self._deal = deal
        self._max_moves = max_moves
        self._classes = np.unique(deal.classes).tolist()
        # How many pairs each class of numerics can keep alive through the loss of a domain, if that is asked for.
        self.protected = {numerics: protected(deal, numerics, min(2, whole)) for numerics in self._classes}
        self._hopeless: set[tuple[int, ...]] = set()

    def keep(self) -> None:
        """Drops what no longer fits: copies of a pair's lesser class, and those for which a shard has no room any more."""
        deal = self._deal
        self._keep_one_class()
        for shard in (deal.totals > deal.capacity).nonzero()[0].tolist():
            # Those that others hold as well go first.
            pairs = pairs_of(deal.held[shard], deal.copies)
            pairs.sort(key=lambda pair: -int(deal.copies[pair]))
            for layer, expert in pairs[: int(deal.totals[shard] - deal.capacity[shard])]:
                deal.drop(shard, layer, expert)

    def trim(self, target: Ints) -> None:
        """Drops copies beyond ``target``, those that share a domain first, then those of the fullest shards."""
        deal = self._deal
        for layer, expert in pairs_of(deal.copies > target, deal.share):
            while deal.copies[layer, expert] > target[layer, expert]:
                holders = deal.holders(layer, expert)
                domains = deal.domains[holders].tolist()
                fullest = max(
                    holders,
                    key=lambda shard: (
                        domains.count(int(deal.domains[shard])),
                        deal.counts[layer, shard] / deal.speed[shard],
                        deal.loads[layer, shard] / deal.speed[shard],
                    ),
                )
                deal.drop(fullest, layer, expert)

    def cover(self) -> None:
        """A first copy of everything, whatever it costs."""
        deal = self._deal
        counts = self._pairs_per_class()
        everybody = np.ones_like(deal.same_class[0])
        spacious = self._spacious(counts)
        for layer, expert in pairs_of(deal.wanted & (deal.copies == 0), deal.share):
            shard = deal.emptiest(layer, expert, spacious)
            if shard == NOWHERE:
                shard = deal.emptiest(layer, expert, everybody)
            if shard == NOWHERE:
                shard = self._evict(layer, expert, everybody, 1)
            if shard == NOWHERE:
                return
            deal.add(shard, layer, expert)
            numerics = int(deal.classes[shard])
            counts[numerics] += 1
            if counts[numerics] == self.protected[numerics]:
                spacious = self._spacious(counts)

    def change_class(self) -> None:
        """Pairs of a class that has no room for their second copies go to one that has."""
        deal = self._deal
        counts = self._pairs_per_class()
        for crowded in self._classes:
            excess = counts[crowded] - self.protected[crowded]
            members = deal.held[deal.classes == crowded].any(0)
            for layer, expert in pairs_of(members, -deal.share)[: max(0, excess)]:
                shard = deal.emptiest(layer, expert, self._spacious(counts))
                if shard == NOWHERE or not self.may_load(1):
                    break
                for holder in deal.holders(layer, expert):
                    deal.drop(holder, layer, expert)
                deal.add(shard, layer, expert)
                counts[crowded] -= 1
                counts[int(deal.classes[shard])] += 1

    def replicate(self, target: Ints) -> None:
        """Copies up to ``target``, a round for each, in as many zones; what is left over then at least on as many shards."""
        deal = self._deal
        self._part_zones(target)
        for zones in (deal.domains, np.arange(deal.num_shards)):
            for copies in range(2, int(target.max(initial=0)) + 1):
                self._hopeless.clear()
                for layer, expert in pairs_of(deal.copies < np.minimum(target, copies), deal.share):
                    self._replicate(layer, expert, zones, copies)

    def may_load(self, pairs: int) -> bool:
        return self._max_moves is None or self._deal.moved + pairs <= self._max_moves

    def _replicate(self, layer: int, expert: int, zones: Ints, copies: int) -> None:
        deal = self._deal
        if deal.copies[layer, expert] == 0:
            return
        suitable = deal.suitable(layer, expert, zones)
        # Who holds it now has it dropped as it shares a domain, and need not load it.
        holding = suitable & deal.now[:, layer, expert]
        shard = deal.emptiest(layer, expert, holding) if holding.any() else NOWHERE
        if shard == NOWHERE and self.may_load(1):
            shard = deal.emptiest(layer, expert, suitable)
            if shard == NOWHERE and suitable.any():
                shard = self._free_a_place(layer, expert, suitable, zones, copies)
        if shard != NOWHERE:
            deal.add(shard, layer, expert)

    def _free_a_place(self, layer: int, expert: int, suitable: Bools, zones: Ints, copies: int) -> int:
        situation = tuple(sorted({int(zones[holder]) for holder in self._deal.holders(layer, expert)}))
        if situation in self._hopeless:
            return NOWHERE
        shard = self._evict(layer, expert, suitable, copies)
        if shard == NOWHERE:
            shard = self._make_room(layer, expert, suitable, zones)
        if shard == NOWHERE:
            self._hopeless.add(situation)
        return shard

    def _evict(self, layer: int, expert: int, suitable: Bools, copies: int) -> int:
        """Takes the place of a copy beyond the ``copies`` that every pair shall have first; returns whose."""
        deal = self._deal
        spare = deal.held & (deal.copies > copies) & suitable[:, None, None]
        if not spare.any():
            return NOWHERE
        shards, layers, experts = spare.nonzero()
        least = np.lexsort((deal.share[layers, experts], layers != layer))[0]
        deal.drop(int(shards[least]), int(layers[least]), int(experts[least]))
        return int(shards[least])

    def _make_room(self, layer: int, expert: int, suitable: Bools, zones: Ints) -> int:
        """Some other pair's copy moves from a suitable shard to one with room; returns the former."""
        deal = self._deal
        holder = deal.holders(layer, expert)[0]
        with_room = (deal.totals < deal.capacity) & deal.same_class[holder]
        for target in with_room.nonzero()[0].tolist():
            in_zone = deal.held[zones == zones[target]].any(0)  # [L, E]
            in_domain = deal.held[deal.domains == deal.domains[target]].any(0)
            for source in suitable.nonzero()[0].tolist():
                within = deal.domains[source] == deal.domains[target]
                movable = deal.held[source] & ~(in_zone if within else in_domain)
                if not movable.any():
                    continue
                layers, experts = movable.nonzero()
                costs = deal.now[source, layers, experts] & ~deal.now[target, layers, experts]
                best = np.lexsort(
                    (abs(deal.share[layers, experts] - deal.share[layer, expert]), layers != layer, costs)
                )[0]
                if not self.may_load(1 + int(costs[best])):
                    return NOWHERE
                deal.move(int(experts[best]), int(layers[best]), source, target)
                return source
        return NOWHERE

    def _part_zones(self, target: Ints) -> None:
        """Copies that share a domain are dropped, to be dealt again."""
        deal = self._deal
        for domain in np.unique(deal.domains).tolist():
            mine = (deal.domains == domain).nonzero()[0]
            for layer, expert in pairs_of(deal.held[mine].sum(0) > 1, deal.share):
                sharing = mine[deal.held[mine, layer, expert]]
                for shard in sharing[1:].tolist():
                    deal.drop(shard, layer, expert)

    def _keep_one_class(self) -> None:
        deal = self._deal
        copies: npt.NDArray[np.int64] = np.stack(
            [deal.held[deal.classes == c].sum(0) for c in self._classes]
        )  # [C, L, E]
        kept = np.asarray(self._classes)[copies.argmax(0)]  # [L, E]
        for shard in range(deal.num_shards):
            for layer, expert in np.argwhere(deal.held[shard] & (kept != deal.classes[shard])).tolist():
                deal.drop(shard, layer, expert)

    def _spacious(self, counts: dict[int, int]) -> Bools:
        """[S]: whose class could keep yet another pair alive."""
        return np.isin(self._deal.classes, [c for c in self._classes if counts[c] < self.protected[c]])

    def _pairs_per_class(self) -> dict[int, int]:
        deal = self._deal
        return {c: int(deal.held[deal.classes == c].any(0).sum()) for c in self._classes}
