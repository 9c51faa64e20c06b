"""What a load saw beside each step: from the step to the next one that came when the fleet had got over it.

Knows nothing of what is tolerated. A request counts beside every step during whose time it ran.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .steps import Happened
from .stream import Recording

PREFILLS = 1.2


@dataclass(frozen=True)
class Beside:
    """Requests, those that ran at the step's own moment among them, and the longest gap of any stream with when it began, seconds after
    the step. ``beyond_prefill_ms`` is the most that a gap was longer than ``PREFILLS`` times the wait for that stream's first token in calm,
    when all prompts were read at once. None where no gap fell into the time.
    """

    running: int
    lost: int
    different: int
    worst_gap_ms: float | None
    worst_gap_after_s: float | None
    beyond_prefill_ms: float | None


def find_beside(
    happened: Sequence[Happened],
    chaos: Sequence[Recording],
    lost: Sequence[Recording],
    different: Sequence[Recording],
    prefill_s: Mapping[int, float],
) -> tuple[Beside, ...]:
    """One for each step; ``prefill_s``: by request, how long its first token took in calm."""
    began = min(recording.began for recording in chaos)
    spans = [(began + one.at_s, began + _next_s(one, happened)) for one in happened]
    return tuple(
        Beside(
            sum(_is_within(recording, (span[0], span[0])) for recording in chaos),
            sum(_is_within(recording, span) for recording in lost),
            sum(_is_within(recording, span) for recording in different),
            *_worst_gap(chaos, span),
            _beyond_prefill(chaos, span, prefill_s),
        )
        for span in spans
    )


def _worst_gap(chaos: Sequence[Recording], span: tuple[float, float]) -> tuple[float | None, float | None]:
    gaps = [(gap, start) for recording in chaos for gap, start in _gaps(recording, span)]
    gap, start = max(gaps, default=(None, None))
    return (None, None) if gap is None or start is None else (1e3 * gap, start - span[0])


def _beyond_prefill(
    chaos: Sequence[Recording], span: tuple[float, float], prefill_s: Mapping[int, float]
) -> float | None:
    beyond = (gap - PREFILLS * prefill_s[each.request] for each in chaos for gap, _ in _gaps(each, span))
    return max((1e3 * seconds for seconds in beyond), default=None)


def _next_s(one: Happened, happened: Sequence[Happened]) -> float:
    if one.over_s is None:
        return float("inf")
    return min((other.at_s for other in happened if other.at_s >= one.over_s), default=float("inf"))


def _is_within(recording: Recording, span: tuple[float, float]) -> bool:
    ended = recording.began if recording.ended is None else recording.ended
    return recording.began <= span[1] and ended > span[0]


def _gaps(recording: Recording, span: tuple[float, float]) -> list[tuple[float, float]]:
    """Each with when it began."""
    starts = zip(recording.gaps, recording.stamps, strict=False)
    return [(gap, start) for gap, start in starts if start < span[1] and start + gap > span[0]]
