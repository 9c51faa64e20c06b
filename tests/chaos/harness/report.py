"""An outcome as JSON, and as lines for people.

Knows nothing of how it came about.
"""

import dataclasses
import platform
from typing import Any

from expertfleet import __version__

from .beside import Beside
from .chaos import Outcome
from .growth import Growth
from .judge import Summary, Times
from .steps import Happened

_SHOWN = 10


def as_json(outcome: Outcome) -> dict[str, Any]:
    judgement = outcome.judgement
    return {
        "expertfleet": __version__,
        "machine": f"{platform.system()} {platform.machine()}",
        "passed": not outcome.failures,
        "failures": list(outcome.failures),
        "plan": dataclasses.asdict(outcome.plan),
        "calm": dataclasses.asdict(judgement.calm),
        "chaos": dataclasses.asdict(judgement.chaos),
        "lost": [dataclasses.asdict(one) for one in judgement.lost],
        "different": [dataclasses.asdict(one) for one in judgement.different],
        "client_lag_ms": 1e3 * outcome.client_lag_s,
        "steps": [_step(*one) for one in zip(outcome.happened, judgement.beside, strict=True)],
        "processes": [dataclasses.asdict(one) | {"rss_percent": one.rss_percent} for one in outcome.growths],
        "replaced": list(outcome.replaced),
        "num_cycles": outcome.num_cycles,
    }


def _step(happened: Happened, beside: Beside) -> dict[str, Any]:
    figures = {
        name: getattr(happened, name) for name in ("at_s", "pid", "seat_s", "whole_s", "over_s", "error", "note")
    }
    return {"step": happened.name, **figures, **dataclasses.asdict(beside)}


def as_lines(outcome: Outcome) -> list[str]:
    judgement = outcome.judgement
    lines = [outcome.plan.title, *_loads(judgement.calm, judgement.chaos), *_steps(outcome), *_streams(judgement.chaos)]
    lines += _processes(outcome.growths, outcome.replaced)
    lines.append(f"the client itself was late by at most {1e3 * outcome.client_lag_s:.0f} ms")
    for what, found in (("lost", judgement.lost), ("different", judgement.different)):
        lines.append(f"{what}: {len(found)} of {judgement.chaos.num_requests} requests")
        lines += [f"  stream {one.request}: {one.what}" for one in found[:_SHOWN]]
    return [*lines, *(f"FAILED: {failure}" for failure in outcome.failures), *(() if outcome.failures else ("passed",))]


def _loads(calm: Summary, chaos: Summary) -> list[str]:
    heads = ("p50", "p99", "p99.9", "worst")
    lines = [f"{'':28}" + "".join(f"{head:>10}" for head in heads)]
    for name, summary in (("calm", calm), ("chaos", chaos)):
        lines.append(f"{name + ': gaps, ms':28}" + _row(summary.gaps))
        lines.append(f"{name + ': first token, ms':28}" + _row(summary.first_tokens))
    for name, summary in (("calm", calm), ("chaos", chaos)):
        rate = summary.num_tokens / summary.took_s
        counts = f"{summary.num_requests} requests, {summary.num_tokens} tokens in {summary.took_s:.1f} s"
        lines.append(f"{name}: {counts}, {rate:.1f} tokens/s")
    return lines


def _steps(outcome: Outcome) -> list[str]:
    heads = ("at, s", "pid", "seat, s", "whole, s", "lost", "different", "gap, ms", "after, s")
    lines = [f"{'step':28}" + "".join(f"{head:>10}" for head in heads)]
    for one, beside in zip(outcome.happened, outcome.judgement.beside, strict=True):
        times = f"{_cell(one.at_s)}{one.pid or '-':>10}{_cell(one.seat_s)}{_cell(one.whole_s)}"
        found = f"{beside.lost:>10}{beside.different:>10}{_cell(beside.worst_gap_ms)}{_cell(beside.worst_gap_after_s)}"
        lines.append(f"{one.name:28}{times}{found}" + (f"  {one.note}" if one.note else ""))
    return lines


def _streams(chaos: Summary) -> list[str]:
    worst = sorted(chaos.worst, key=lambda one: -one.gap_ms)[:_SHOWN]
    told = (f"stream {one.request} {one.gap_ms:.0f} ms at {one.at_s:.1f} s" for one in worst)
    return [f"worst gaps under chaos: {'; '.join(told)}"]


def _processes(growths: tuple[Growth, ...], replaced: tuple[str, ...]) -> list[str]:
    heads = ("pid", "files", "later", "MiB", "later", "grown, %", "read, MiB")
    lines = [f"{'process':28}" + "".join(f"{head:>10}" for head in heads)]
    for one in growths:
        counts = f"{one.pid:>10}{one.fds[0]:>10}{one.fds[1]:>10}"
        lines.append(f"{one.seat:28}{counts}" + "".join(map(_cell, (*one.rss_mib, one.rss_percent, one.read_mib))))
    return [*lines, f"replaced although no step ended them: {', '.join(replaced) or 'none'}"]


def _row(times: Times) -> str:
    return "".join(_cell(value) for value in (times.p50, times.p99, times.p999, times.worst))


def _cell(value: float | None) -> str:
    return f"{'-' if value is None else format(value, '.1f'):>10}"
