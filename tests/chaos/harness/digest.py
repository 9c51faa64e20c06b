"""The reports of many plans as one page of Markdown: a line for each plan, a line for each step.

Knows nothing of how they came about: the JSON that ``run.py`` writes goes in.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from .beside import PREFILLS
from .campaign import Part

_PLANS = (
    "plan", "streams", "steps", "requests", "tokens", "lost", "different", "calm p99.9, ms", "worst gap, ms", "held",
    "slowest recovery, s", "client late, ms", "result",
)  # fmt: skip
_STEPS = (
    "at, s", "step", "pid", "seat, s", "whole, s", "ran", "lost", "different", "worst gap, ms", "after, s",
    "beyond prefill, ms", "",
)  # fmt: skip
_PROCESSES = ("process", "pid", "files", "later", "MiB", "later", "grown, %", "read, MiB")


def digest(title: str, facts: Sequence[str], parts: Sequence[tuple[Part, Mapping[str, Any] | str]]) -> str:
    """``parts``: each with its report, or with why there is none."""
    lines = [f"# {title}", "", *(f"- {fact}" for fact in facts), ""]
    lines += _table(_PLANS, [_plan_row(*part) for part in parts])
    for part, report in parts:
        if not isinstance(report, str):
            lines += ["", *_section(part, report)]
    return "\n".join(lines) + "\n"


def _plan_row(part: Part, report: Mapping[str, Any] | str) -> list[Any]:
    if isinstance(report, str):
        return [part.plan, *[""] * (len(_PLANS) - 2), report]
    calm, chaos = report["calm"], report["chaos"]
    slowest = max((step["whole_s"] for step in report["steps"] if step["whole_s"] is not None), default=None)
    return [
        f"[{part.plan}](#{part.plan})", report["plan"]["load"]["streams"], len(report["steps"]), chaos["num_requests"],
        chaos["num_tokens"], len(report["lost"]), len(report["different"]), calm["gaps"]["p999"], chaos["gaps"]["worst"],
        _held(part, report), slowest, report["client_lag_ms"], "passed" if report["passed"] else "**failed**",
    ]  # fmt: skip


def _held(part: Part, report: Mapping[str, Any]) -> str:
    """Beside how many steps the worst gap was within the part's bound."""
    steps = report["steps"]
    gaps = [step["worst_gap_ms"] or 0.0 for step in steps]
    if part.beyond_calm_ms is not None:
        most = (report["calm"]["gaps"]["p999"] or 0.0) + part.beyond_calm_ms
        return f"{sum(gap <= most for gap in gaps)} of {len(gaps)} ≤ calm + {part.beyond_calm_ms:g} ms"
    if part.beyond_reload_ms is not None:
        reloads = [1e3 * step["seat_s"] if step["seat_s"] is not None else float("-inf") for step in steps]
        held = sum(gap <= reload + part.beyond_reload_ms for gap, reload in zip(gaps, reloads, strict=True))
        return f"{held} of {len(gaps)} ≤ reload + {part.beyond_reload_ms:g} ms"
    if part.beyond_prefill_ms is not None:
        held = sum((step["beyond_prefill_ms"] or 0.0) <= part.beyond_prefill_ms for step in steps)
        return f"{held} of {len(gaps)} ≤ {PREFILLS:g} prefills + {part.beyond_prefill_ms:g} ms"
    if part.worst_gap_ms is not None:
        return f"{sum(gap <= part.worst_gap_ms for gap in gaps)} of {len(gaps)} ≤ {part.worst_gap_ms:g} ms"
    return ""


def _section(part: Part, report: Mapping[str, Any]) -> list[str]:
    load, fleet = report["plan"]["load"], report["plan"]["fleet"]
    sizes = (
        f"{fleet['expert_shards']} shards, {fleet['replicas']} replicas, {fleet['attention_workers']} attention workers"
    )
    prompts = " / ".join(map(str, load["prompt_tokens"]))
    answers = (
        f"{load['streams']} streams, prompts of {prompts} tokens, answers of {load['max_tokens']}, {load['sampling']}"
    )
    lines = [f"## {part.plan}", "", f"{report['plan']['title']}: {sizes}; {answers}.", ""]
    lines += [f"- FAILED: {failure}" for failure in report["failures"]]
    lines += [""] if report["failures"] else []
    lines += _table(_STEPS, [_step_row(step) for step in report["steps"]])
    if report["processes"]:
        lines += ["", *_table(_PROCESSES, [_process_row(one) for one in report["processes"]])]
    return lines


def _step_row(step: Mapping[str, Any]) -> list[Any]:
    figures = [step[name] for name in ("seat_s", "whole_s", "running", "lost", "different", "worst_gap_ms")]
    figures += [step["worst_gap_after_s"], step["beyond_prefill_ms"]]
    return [step["at_s"], step["step"], step["pid"], *figures, "; ".join(filter(None, (step["note"], step["error"])))]


def _process_row(one: Mapping[str, Any]) -> list[Any]:
    return [one["seat"], one["pid"], *one["fds"], *one["rss_mib"], one["rss_percent"], one["read_mib"]]


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    lines = [heads, ["---"] * len(heads), *([_cell(value) for value in row] for row in rows)]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if isinstance(value, float) else str(value).replace("|", "/").replace("\n", " ")
