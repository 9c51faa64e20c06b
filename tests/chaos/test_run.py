"""Plans against real fleets, by the command that people type."""

import json
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import run as run_module
from harness.plan_file import read_plan
from until import until

from expertfleet.cluster.ray.process_reaper import alive, descendants

HERE = Path(__file__).parent
KILL_SHARD = HERE / "plans" / "kill-shard.toml"


def run(*words: object) -> Any:
    command = [sys.executable, HERE / "run.py", *words]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["kill-shard", "kill-attention"])
def test_no_request_is_lost_and_no_token_changes(plan: str, tmp_path: Path) -> None:
    seed = random.getrandbits(31)
    flags = ("--streams=4", "--repeat=1", f"--seed={seed}", f"--report={tmp_path / 'report.json'}")
    done = run(HERE / "plans" / f"{plan}.toml", *flags)
    assert done.returncode == 0, f"seed {seed}\n{done.stdout}\n{done.stderr}"
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["passed"]
    assert report["plan"]["load"]["seed"] == seed
    assert report["calm"]["num_requests"] == 4 <= report["chaos"]["num_requests"]
    (step,) = report["steps"]
    assert step["whole_s"] > 0
    assert (step["lost"], step["different"]) == (0, 0)
    assert step["worst_gap_ms"] > 0
    assert not report["replaced"]
    survivors = {one["seat"]: one for one in report["processes"]}
    assert "gateway-0" in survivors
    assert all(one["fds"][0] > 0 and one["rss_mib"][0] > 1 for one in survivors.values())
    assert f"{step['step']:28}" in done.stdout


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--streams=0"], "with --streams, --max-tokens: streams: 0 is not within 1 to 1024"),
        (
            ["--expert-shards=1", "--replicas=1"],
            "with --expert-shards, --replicas: step[0].target: 'expert-1' is not in",
        ),
        (["--minutes=3"], "--minutes: the plan has no [soak]"),
        (["--cycles=3"], "--cycles: the plan has no [scaling]"),
        (["--repeat=0"], "with --repeat: repeat: 0 is not within 1 to 10000"),
        (["--for-s=3"], "--for-s: 3 is for steps that last, and the plan has none"),
    ],
)
def test_flags_that_contradict_the_plan_are_one_line(flags: list[str], words: str) -> None:
    done = run(KILL_SHARD, "--max-tokens=50", *flags)
    assert done.returncode == 2
    assert done.stderr.startswith(f"chaos: error: {words}"), done.stderr
    assert done.stderr.count("\n") == 1


def test_flags_for_serve_are_refused_where_there_is_none() -> None:
    done = run(HERE / "plans" / "cut-shard.toml", "--", "--pin")
    assert done.returncode == 2
    assert done.stderr == "chaos: error: --pin: a fleet of machines or nodes is not started by serve\n"


def test_flags_lay_other_values_over_the_plans() -> None:
    given = vars(run_module._parser().parse_args(["plan", "--repeat=20", "--for-s=600"]))
    plan = run_module.overlaid(read_plan(HERE / "plans" / "head-away.toml"), given)
    assert plan.repeat == 20
    assert [step.for_s for step in plan.step] == [600.0, None]


def test_a_fleet_that_cannot_start_is_one_line_with_its_reason() -> None:
    done = run(KILL_SHARD, "--", "--max-model-len=0")
    assert done.returncode == 2
    assert "--max-model-len: 0 is not within" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_a_run_that_is_ended_leaves_nothing() -> None:
    process = subprocess.Popen([sys.executable, HERE / "run.py", KILL_SHARD], stderr=subprocess.DEVNULL)
    try:
        until(lambda: len(descendants(process.pid)) > 3, 60)  # serve, its guard, and what that starts
        below = descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 130
        until(lambda: not any(map(alive, below)), 10)
    finally:
        process.kill()
        process.wait()
