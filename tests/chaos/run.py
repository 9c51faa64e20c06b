"""Runs a chaos plan against a fleet of its own: python tests/chaos/run.py tests/chaos/plans/kill-shard.toml

Knows nothing of what plans mean. Flags lay other values over the plan's; what follows ``--`` goes to ``expertfleet serve``.
Ends with 0 if all held that the plan expects, with 1 if not, with 2 if it could not be run. docs/chaos.md has the keys.
"""

import argparse
import asyncio
import dataclasses
import json
import signal
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
from harness.chaos import Outcome, run_plan
from harness.fleet import FleetError
from harness.plan import Plan
from harness.plan_file import PlanError, read_plan
from harness.report import as_json, as_lines

from expertfleet.benchmarks.networks.commands import NetworkError
from expertfleet.demo.bundled import NANO_K2

_READY_S = 180.0


def _lengths(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


_OVER = {
    "fleet": ("expert_shards", "replicas", "attention_workers"),
    "load": ("streams", "max_tokens", "seed", "calm_gap_ms", "prompt_tokens"),
    "soak": ("minutes",),
    "scaling": ("cycles", "baseline"),
}
_OWN = {"repeat": int, "within_min": float}
_KINDS = {"minutes": float, "calm_gap_ms": float, "prompt_tokens": _lengths}


def main() -> int:
    parser = _parser()
    options = parser.parse_args()
    try:
        plan = overlaid(read_plan(options.plan), vars(options))
        if (plan.fleet.machines or plan.fleet.nodes) and options.serve_flags:
            raise PlanError(f"{options.serve_flags[0]}: a fleet of machines or nodes is not started by serve")
        outcome = asyncio.run(_run(plan, options))
    except (PlanError, FleetError, NetworkError, httpx.HTTPError) as error:
        print(f"chaos: error: {str(error) or type(error).__name__}", file=sys.stderr)
        return 2
    except (asyncio.CancelledError, KeyboardInterrupt):
        return 130
    print("\n".join(as_lines(outcome)))
    if options.report is not None:
        options.report.write_text(json.dumps(as_json(outcome), indent=2) + "\n")
    return 1 if outcome.failures else 0


async def _run(plan: Plan, options: argparse.Namespace) -> Outcome:
    """SIGTERM cancels it, so that its fleet is ended whatever happens."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await run_plan(plan, options.model, tuple(options.serve_flags), options.ready_s, _say)


def overlaid(plan: Plan, given: dict[str, Any]) -> Plan:
    """The plan with the values of flags that were given."""
    for part, names in _OVER.items():
        values = {name: given[name] for name in names if given[name] is not None}
        if not values:
            continue
        if getattr(plan, part) is None:
            raise PlanError(f"--{next(iter(values))}: the plan has no [{part}]")
        try:
            plan = dataclasses.replace(plan, **{part: dataclasses.replace(getattr(plan, part), **values)})
        except ValueError as error:
            raise PlanError(f"with {', '.join(map(_flag, values))}: {error}") from None
    return _with_for_s(_with_own(plan, given), given["for_s"])


def _with_own(plan: Plan, given: dict[str, Any]) -> Plan:
    for name in _OWN:
        try:
            plan = plan if given[name] is None else dataclasses.replace(plan, **{name: given[name]})
        except ValueError as error:
            raise PlanError(f"with {_flag(name)}: {error}") from None
    return plan


def _with_for_s(plan: Plan, for_s: float | None) -> Plan:
    if for_s is None:
        return plan
    if all(step.for_s is None for step in plan.step):
        raise PlanError(f"--for-s: {for_s:g} is for steps that last, and the plan has none")
    try:
        steps = (dataclasses.replace(step, for_s=for_s) if step.for_s is not None else step for step in plan.step)
        return dataclasses.replace(plan, step=tuple(steps))
    except ValueError as error:
        raise PlanError(f"with --for-s: {error}") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path, help="TOML file")
    parser.add_argument("--model", type=Path, default=NANO_K2, help="checkpoint (default: the bundled nano-k2)")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the outcome as JSON")
    parser.add_argument("--ready-s", type=float, default=_READY_S, help=f"wait so long for the fleet ({_READY_S:g})")
    for names in _OVER.values():
        for name in names:
            parser.add_argument(_flag(name), type=_KINDS.get(name, int), help="instead of the plan's")
    for name, own in _OWN.items():
        parser.add_argument(_flag(name), type=own, help="instead of the plan's")
    parser.add_argument("--for-s", type=float, help="instead of that of every step that has one")
    parser.add_argument("serve_flags", nargs="*", metavar="-- FLAG", help="further flags of expertfleet serve")
    return parser


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _say(line: str) -> None:
    print(f"# {datetime.now():%H:%M:%S} {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
