"""Stragglers: shards that stay slow, by the time that attention workers report for one of their experts.

Knows nothing of seats, gRPC and clocks (the caller says what time it is). A shard is compared with its peers, the other shards of
its numerics class, as unlike devices may differ by far more. In the eyes of one attention worker it is slow if it takes more than
``factor`` times the median of its peers; a bad network between two machines is nobody's fault, so all that timed it must agree.
"""

import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from ...settings.option import Settings, option

Times = Mapping[str, float]  # seconds for each activated expert, by the shard's address


@dataclass(frozen=True)
class SlowRule:
    """Which shards are drained as they stay slow."""

    after_s: float = 0.0  # 0: none is, ever
    factor: float = 3.0


@dataclass(frozen=True, kw_only=True)
class SlowSettings(Settings):
    """The settings of this."""

    drain_slow_s: float = option(
        0.0,
        "seconds after which a shard that stays slower than its peers is drained, if the others can hold the model; 0: never",
        group="failure",
        range=(5, 86_400),
        zero=True,
    )
    drain_slow_factor: float = option(
        3.0,
        "how many times the median of its peers' times for an expert a shard must take to count as slow",
        group="failure",
        range=(1.5, 1000),
    )

    @property
    def slow_rule(self) -> SlowRule:
        return SlowRule(self.drain_slow_s, self.drain_slow_factor)


def find_slow(witnesses: Sequence[Times], classes: Mapping[str, str], factor: float) -> set[str]:
    """Of the shards whose numerics ``classes`` are given those that are slow now."""
    timed = classes.keys() & {address for times in witnesses for address in times}
    return {
        address
        for address in timed
        if all(_is_slow(address, times, classes, factor) for times in witnesses if address in times)
    }


class SlowWatch:
    """Since when each shard has been slow without a break."""

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        self._since: dict[str, float] = {}

    def look(self, slow: Collection[str], now: float) -> list[str]:
        """Those that have been slow for long enough, the longest first."""
        self._since = {address: self._since.get(address, now) for address in slow}
        stayed = [address for address, since in self._since.items() if now - since >= self._after_s]
        return sorted(stayed, key=lambda address: (self._since[address], address))


def _is_slow(address: str, times: Times, classes: Mapping[str, str], factor: float) -> bool:
    peers = [
        seconds
        for other, seconds in times.items()
        if other != address and classes.get(other) == classes[address]
    ]  # fmt: skip
    return bool(peers) and times[address] > factor * statistics.median_high(peers)
