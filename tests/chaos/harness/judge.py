"""Holds what a load saw under chaos against what it saw in calm, and both against what the plan tolerates.

Knows nothing of fleets: recordings and steps go in, findings come out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .beside import Beside, find_beside
from .plan import Expect
from .steps import Happened
from .stream import Recording


@dataclass(frozen=True)
class Finding:
    """One request that was lost, or whose answer was another one, and how."""

    request: int
    what: str


@dataclass(frozen=True)
class Times:
    """Milliseconds; None where nothing was measured."""

    p50: float | None
    p99: float | None
    p999: float | None
    worst: float | None


@dataclass(frozen=True)
class Worst:
    """The longest gap of one stream, and when it began: seconds since the load did."""

    request: int
    gap_ms: float
    at_s: float


@dataclass(frozen=True)
class Summary:
    """One run of the load."""

    num_requests: int
    num_tokens: int
    took_s: float
    gaps: Times
    first_tokens: Times
    worst: tuple[Worst, ...]


@dataclass(frozen=True)
class Judgement:
    """``beside``: for each step."""

    calm: Summary
    chaos: Summary
    lost: tuple[Finding, ...]
    different: tuple[Finding, ...]
    beside: tuple[Beside, ...]
    failures: tuple[str, ...]


def judge(
    expect: Expect, calm: Sequence[Recording], chaos: Sequence[Recording], happened: Sequence[Happened]
) -> Judgement:
    """``calm`` has each request once and whole; ``chaos`` each at least once."""
    originals = {recording.request: recording for recording in calm}
    losses = [(recording, loss_of(originals[recording.request], recording)) for recording in chaos]
    kept = [recording for recording, loss in losses if not loss]
    differences = [(recording, difference_of(originals[recording.request], recording)) for recording in kept]
    (lost_ones, lost), (different_ones, different) = _found(losses), _found(differences)
    summaries = summarise(calm), summarise(chaos)
    failures = (
        *_too_many("requests lost", lost, expect.lost),
        *_too_many("requests with other tokens", different, expect.different),
        *_gap_failures(expect, *summaries),
        *_step_failures(expect, happened),
    )
    prefill_s = {request: original.first_token_s or 0.0 for request, original in originals.items()}
    beside = find_beside(happened, chaos, lost_ones, different_ones, prefill_s)
    return Judgement(*summaries, tuple(lost), tuple(different), beside, failures)


def _found(told: Sequence[tuple[Recording, str]]) -> tuple[list[Recording], list[Finding]]:
    """Those of which there is something to tell."""
    faulty = [(recording, what) for recording, what in told if what]
    return [recording for recording, _ in faulty], [Finding(recording.request, what) for recording, what in faulty]


def loss_of(original: Recording, again: Recording) -> str:
    """How the request was lost: an error, or an end before the original's; empty if it was not."""
    got, whole = again.token_ids, original.token_ids
    if again.error:
        return again.error
    if len(got) < len(whole) and got == whole[: len(got)]:
        return f"ended after {len(got)} of {len(whole)} tokens, finish reason {again.finish_reason}"
    return ""


def difference_of(original: Recording, again: Recording) -> str:
    """Where an answer first departs from the original; empty where it is the same."""
    for index, (ours, theirs) in enumerate(zip(again.token_ids, original.token_ids, strict=False)):
        if ours != theirs:
            return f"token {index} of {len(original.token_ids)} is {ours}, was {theirs}"
    if len(again.token_ids) != len(original.token_ids):
        return f"{len(again.token_ids)} tokens, were {len(original.token_ids)}"
    if again.finish_reason != original.finish_reason:
        return f"finish reason {again.finish_reason}, was {original.finish_reason}"
    for kind in sorted({*again.texts, *original.texts}):
        if again.texts.get(kind, "") != original.texts.get(kind, ""):
            return f"the same tokens, but other {kind}: {again.texts.get(kind, '')!r}, was {original.texts.get(kind, '')!r}"
    return ""


def summarise(recordings: Sequence[Recording]) -> Summary:
    began = min(recording.began for recording in recordings)
    ended = max(recording.ended or recording.began for recording in recordings)
    firsts = [recording.first_token_s for recording in recordings if recording.first_token_s is not None]
    return Summary(
        num_requests=len(recordings),
        num_tokens=sum(len(recording.token_ids) for recording in recordings),
        took_s=ended - began,
        gaps=_times([gap for recording in recordings for gap in recording.gaps]),
        first_tokens=_times(firsts),
        worst=_worst(recordings, began),
    )


def _worst(recordings: Sequence[Recording], began: float) -> tuple[Worst, ...]:
    """Of each request, over all of its answers."""
    worst: dict[int, Worst] = {}
    for recording in recordings:
        for index, gap in enumerate(recording.gaps):
            if recording.request not in worst or 1e3 * gap > worst[recording.request].gap_ms:
                worst[recording.request] = Worst(recording.request, 1e3 * gap, recording.stamps[index] - began)
    return tuple(worst[request] for request in sorted(worst))


def _times(seconds: Sequence[float]) -> Times:
    if not seconds:
        return Times(None, None, None, None)
    ordered = sorted(seconds)
    ranks = (math.ceil(share * len(ordered)) - 1 for share in (0.5, 0.99, 0.999, 1.0))
    return Times(*(1e3 * ordered[max(0, rank)] for rank in ranks))


def _too_many(what: str, found: Sequence[Finding], limit: int) -> list[str]:
    if len(found) <= limit:
        return []
    return [f"{len(found)} {what}, at most {limit} tolerated; stream {found[0].request}: {found[0].what}"]


def _gap_failures(expect: Expect, calm: Summary, chaos: Summary) -> list[str]:
    if chaos.gaps.worst is None:
        return ["no stream had two chunks, so no gap was measured"]
    failures = []
    if expect.worst_gap_ms is not None and chaos.gaps.worst > expect.worst_gap_ms:
        failures.append(f"a gap of {chaos.gaps.worst:.0f} ms, at most {expect.worst_gap_ms:g} tolerated")
    beyond = chaos.gaps.worst - (calm.gaps.p999 or 0.0)
    if expect.gap_beyond_calm_ms is not None and beyond > expect.gap_beyond_calm_ms:
        limit = f"at most {expect.gap_beyond_calm_ms:g} tolerated"
        failures.append(f"a gap of {beyond:.0f} ms beyond calm's 99.9th percentile, {limit}")
    return failures


def _step_failures(expect: Expect, happened: Sequence[Happened]) -> list[str]:
    failures = [f"{one.name}: {one.error}" for one in happened if one.error]
    for one in happened:
        if expect.recovery_s is not None and one.whole_s is not None and one.whole_s > expect.recovery_s:
            failures.append(
                f"{one.name}: whole again after {one.whole_s:.1f} s, at most {expect.recovery_s:g} tolerated"
            )
    return failures
