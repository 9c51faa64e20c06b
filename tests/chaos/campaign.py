"""Runs many chaos plans in the time there is: python tests/chaos/campaign.py --minutes 240 --report benchmarks/results/chaos.md

Knows nothing of what plans mean: each is a run of ``run.py``, one after the other. The report is written anew after every part, so
that a campaign that is broken off leaves what it has found. Ends with 0 if all parts passed, with 1 if not, with 2 if it could not
be run.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from harness.campaign import MOST_STREAMS, Campaign, Part, next_streams, share
from harness.digest import digest
from harness.plan_file import PlanError, read

from expertfleet import __version__

HERE = Path(__file__).parent
_BEYOND_MIN = 12.0  # what the last step of a part may take until it is over, and the fleet to end
_END_S = 120.0


def main() -> int:
    options = _parser().parse_args()
    try:
        if not options.report.parent.is_dir():
            raise PlanError(f"--report: {options.report.parent} is no directory")
        campaign = read(Campaign, options.campaign)
        campaign = campaign.only(options.only.split(",")) if options.only else campaign
        for part in campaign.part:
            if not _plan(part).is_file():
                raise PlanError(f"{options.campaign}: part: {part.plan!r} is no plan in {HERE / 'plans'}")
    except ValueError as error:
        print(f"chaos: error: {error}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _run(campaign, options)
    except KeyboardInterrupt:
        return 130


def _run(campaign: Campaign, options: argparse.Namespace) -> int:
    ends_at = time.monotonic() + 60 * options.minutes
    facts, done = _facts(options.minutes), []
    asked, fewer = MOST_STREAMS, list[str]()
    for number, part in enumerate(campaign.part):
        left_min = (ends_at - time.monotonic()) / 60
        within_min = share(campaign.part[number:], left_min)
        if not within_min:
            done.append((part, f"not run, {max(0.0, left_min):.1f} minutes were left"))
            continue
        _say(f"{part.plan}: {within_min:.1f} minutes")
        report = _one(part, [*campaign.flags, *fewer, *part.words(within_min), *options.flags], within_min)
        done.append((part, report))
        if not isinstance(report, str) and not part.has_own_streams:
            asked = next_streams(asked, report["plan"]["load"]["streams"])
            fewer = [f"--streams={asked}"]
        options.report.write_text(digest("Chaos", facts, done))
    options.report.write_text(digest("Chaos", facts, done))
    passed = [not isinstance(report, str) and report["passed"] for _, report in done]
    _say(f"{sum(passed)} of {len(done)} parts passed")
    return 0 if all(passed) else 1


def _one(part: Part, words: list[str], within_min: float) -> dict[str, Any] | str:
    """Its report, or why there is none."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, HERE / "run.py", _plan(part), *words, "--report", report]
        with subprocess.Popen(
            list(map(str, command)), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        ) as run:
            try:
                _, told = run.communicate(timeout=60 * (within_min + _BEYOND_MIN))
            except subprocess.TimeoutExpired:
                _end(run)
                return f"**did not end** {_BEYOND_MIN:g} minutes after its time"
            except BaseException:
                _end(run)
                raise
        if report.exists():
            found: dict[str, Any] = json.loads(report.read_text())
            return found
        return f"**no report**, status {run.returncode}: {next(iter(told.splitlines()[::-1]), '')}"


def _end(run: "subprocess.Popen[str]") -> None:
    """It takes its fleet down with it."""
    run.terminate()
    try:
        run.communicate(timeout=_END_S)
    except subprocess.TimeoutExpired:
        run.kill()


def _facts(minutes: float) -> list[str]:
    model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    cores = len(os.sched_getaffinity(0))
    git = subprocess.run(
        ["git", "-C", HERE, "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return [
        f"expertfleet {__version__}, commit {git.stdout.strip() or 'unknown'}, {datetime.now():%Y-%m-%d %H:%M}",
        f"{model.partition(': ')[2] or 'an unknown processor'}, {cores} cores",
        f"{minutes:g} minutes in all; `docs/chaos.md` says what the columns are",
    ]


def _plan(part: Part) -> Path:
    return HERE / "plans" / f"{part.plan}.toml"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--campaign", type=Path, default=HERE / "campaign.toml", metavar="FILE", help="TOML (campaign.toml)"
    )
    parser.add_argument(
        "--minutes", type=_minutes, required=True, help="so long it may take in all, but for the last step"
    )
    parser.add_argument("--report", type=Path, required=True, metavar="FILE", help="the page of Markdown to write")
    parser.add_argument("--only", default="", metavar="PLAN,PLAN", help="these parts alone")
    parser.add_argument("flags", nargs="*", metavar="-- FLAG", help="further flags of run.py for every part")
    return parser


def _minutes(text: str) -> float:
    value = float(text)
    if not 1 <= value <= 10_000:
        raise argparse.ArgumentTypeError(f"{text} is not within 1 to 10000")
    return value


def _say(line: str) -> None:
    print(f"# {datetime.now():%H:%M:%S} {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
