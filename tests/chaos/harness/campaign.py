"""What a campaign says: many plans, one after the other, and how the time that there is falls to them.

Knows nothing of processes and of what plans mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from expertfleet.settings.option import within

_AROUND_S = 240.0  # what the start of a fleet, its calm run and its end take beside a step that lasts
_SHORTEST_S = 20.0
LEAST_MIN = 1.5
MOST_STREAMS = 64
_BOUNDS = ("beyond_calm_ms", "beyond_reload_ms", "beyond_prefill_ms", "worst_gap_ms")


@dataclass(frozen=True)
class Part:
    """``[[part]]``: a plan, the flags of ``run.py`` that lay other values over it, and its share of the time.

    ``for_s`` is that of the plan's steps that last, and less where the time is short. ``beyond_calm_ms`` (beyond calm's 99.9th
    percentile), ``beyond_reload_ms`` (beyond the time until the seat was ready again), ``beyond_prefill_ms`` (see ``Beside``) and
    ``worst_gap_ms`` are what the gaps beside a step are held against in the report; they decide nothing.
    """

    plan: str
    minutes: float
    flags: tuple[str, ...] = ()
    for_s: float | None = None
    beyond_calm_ms: float | None = None
    beyond_reload_ms: float | None = None
    beyond_prefill_ms: float | None = None
    worst_gap_ms: float | None = None

    def __post_init__(self) -> None:
        within("minutes", self.minutes, 1, 10_000)
        for name, most in (("for_s", 3600), *((name, 60_000) for name in _BOUNDS)):
            if (value := getattr(self, name)) is not None:
                within(name, value, 0.1, most)

    @property
    def has_own_streams(self) -> bool:
        return any(flag.startswith("--streams=") for flag in self.flags)

    def words(self, within_min: float) -> list[str]:
        """What ``run.py`` is told besides the plan."""
        lasts = []
        if self.for_s is not None:
            lasts.append(f"--for-s={max(_SHORTEST_S, min(self.for_s, 60 * within_min - _AROUND_S)):.0f}")
        return [*self.flags, *lasts, f"--within-min={within_min:.2f}"]


@dataclass(frozen=True)
class Campaign:
    """``flags`` are every part's."""

    part: tuple[Part, ...]
    flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [part.plan for part in self.part]
        if not names:
            raise ValueError("part: a campaign needs at least one")
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"part: plan {twice!r} twice")

    def only(self, names: Sequence[str]) -> "Campaign":
        """With these parts alone. Raises ValueError for one that is not there."""
        known = [part.plan for part in self.part]
        if unknown := next((name for name in names if name not in known), None):
            raise ValueError(f"--only: {unknown!r} is not one of {', '.join(known)}")
        return Campaign(tuple(part for part in self.part if part.plan in names), self.flags)


def share(parts: Sequence[Part], left_min: float) -> float:
    """Minutes of what is left for the first of ``parts``, those that are yet to come: what one does not need is the others'.

    Each has LEAST_MIN, as a fleet that was started for less would show nothing; 0.0 where so much is not left.
    """
    if left_min < LEAST_MIN:
        return 0.0
    return max(LEAST_MIN, left_min * parts[0].minutes / sum(part.minutes for part in parts))


def next_streams(asked: int, left: int) -> int:
    """What was too much is not tried again at once: that many streams take long to find it out. Where all were left, twice as many are."""
    return left if left < asked else min(MOST_STREAMS, 2 * left)
