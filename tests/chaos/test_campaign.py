"""Many plans in the time there is, and the page that tells of them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import run as run_module
from harness.campaign import Campaign, Part, next_streams, share
from harness.digest import digest
from harness.plan_file import PlanError, read, read_plan

HERE = Path(__file__).parent
REPORT: dict[str, Any] = {
    "passed": True, "failures": [], "client_lag_ms": 12.3, "lost": [], "different": [],
    "plan": {
        "title": "a shard is killed",
        "fleet": {"expert_shards": 3, "replicas": 2, "attention_workers": 1},
        "load": {"streams": 8, "prompt_tokens": [32, 512], "max_tokens": 200, "sampling": "mixed"},
    },
    "calm": {"gaps": {"p999": 100.0, "worst": 110.0}},
    "chaos": {"gaps": {"p999": 200.0, "worst": 500.0}, "num_requests": 16, "num_tokens": 3200},
    "steps": [
        {"step": "kill expert-1", "at_s": 1.0, "pid": 7, "seat_s": 2.0, "whole_s": 3.25, "running": 8, "lost": 0,
         "different": 0, "worst_gap_ms": 399.0, "worst_gap_after_s": 0.25,
         "beyond_prefill_ms": 299.0, "note": "", "error": ""},
        {"step": "kill expert-1", "at_s": 9.0, "pid": 8, "seat_s": 2.0, "whole_s": None, "running": 8, "lost": 1,
         "different": 0, "worst_gap_ms": 500.0, "worst_gap_after_s": -0.25,
         "beyond_prefill_ms": 301.0, "note": "n", "error": "not over it"},
    ],
    "processes": [{"seat": "expert-0", "pid": 5, "fds": [9, 9], "rss_mib": [100.0, 101.0], "rss_percent": 1.0, "read_mib": 0.0}],
}  # fmt: skip


def test_what_one_part_does_not_need_is_the_others() -> None:
    parts = [Part("a", 10), Part("b", 20), Part("c", 10)]
    assert share(parts, 80) == 20
    assert share(parts[1:], 75) == 50
    assert share(parts[2:], 7) == 7
    assert share(parts, 4) == 1.5, "a part that is begun has enough to show something"
    assert share(parts[1:], 1.4) == share(parts[2:], -3) == 0.0


def test_what_was_too_many_streams_is_not_tried_again_at_once() -> None:
    tried, asked = [], 64
    for left in (8, 8, 16, 8, 4, 4, 8, 16, 32, 64, 64):
        asked = next_streams(asked, left)
        tried.append(asked)
    assert tried == [8, 16, 32, 8, 4, 8, 16, 32, 64, 64, 64]


def test_a_step_that_lasts_is_shorter_where_the_time_is() -> None:
    part = Part("head-away", 15, ("--seed=3",), for_s=600)
    assert part.words(20) == ["--seed=3", "--for-s=600", "--within-min=20.00"]
    assert part.words(6) == ["--seed=3", "--for-s=120", "--within-min=6.00"]
    assert part.words(2) == ["--seed=3", "--for-s=20", "--within-min=2.00"]


def test_every_part_of_the_campaign_is_a_plan_that_takes_its_flags() -> None:
    campaign = read(Campaign, HERE / "campaign.toml")
    for part in campaign.part:
        given = run_module._parser().parse_args(["plan", *campaign.flags, *part.words(60)])
        plan = run_module.overlaid(read_plan(HERE / "plans" / f"{part.plan}.toml"), vars(given))
        assert (plan.load.streams >= 12, plan.load.prompt_tokens, plan.within_min) == (True, (32, 512, 4000), 60)
    named = {part.plan for part in campaign.part}
    assert named == {path.stem for path in (HERE / "plans").iterdir()}, "a plan is left out"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("part = []", "part: a campaign needs at least one"),
        ('[[part]]\nplan = "a"', "part[0].minutes: this key is required"),
        ('[[part]]\nplan = "a"\nminutes = 0', "part[0].minutes: 0 is not within 1 to 10000"),
        ('[[part]]\nplan = "a"\nminutes = 1\nfor_s = 0', "part[0].for_s: 0 is not within 0.1 to 3600"),
        ('[[part]]\nplan = "a"\nminutes = 1\n[[part]]\nplan = "a"\nminutes = 1', "part: plan 'a' twice"),
    ],
)
def test_a_mistake_in_a_campaign_names_key_and_value(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "campaign.toml"
    path.write_text(text)
    with pytest.raises(PlanError) as refusal:
        read(Campaign, path)
    assert str(refusal.value) == f"{path}: {words}"


def test_the_page_has_a_line_for_each_plan_and_each_step() -> None:
    page = digest(
        "Chaos", ["a fact"], [(Part("kill-shard", 1, beyond_calm_ms=300), REPORT), (Part("soak", 1), "not run")]
    )
    lines = page.splitlines()
    assert lines[:3] == ["# Chaos", "", "- a fact"]
    (row,) = [line for line in lines if line.startswith("| [kill-shard](#kill-shard)")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:9] == ["8", "2", "16", "3200", "0", "0", "100.0", "500.0"]
    assert cells[9:] == ["1 of 2 ≤ calm + 300 ms", "3.2", "12.3", "passed"]
    assert "| 1.0 | kill expert-1 | 7 | 2.0 | 3.2 | 8 | 0 | 0 | 399.0 | 0.2 | 299.0 |  |" in lines
    assert "| 9.0 | kill expert-1 | 8 | 2.0 | - | 8 | 1 | 0 | 500.0 | -0.2 | 301.0 | n; not over it |" in lines
    assert "| expert-0 | 5 | 9 | 9 | 100.0 | 101.0 | 1.0 | 0.0 |" in lines
    (left_out,) = [line for line in lines if line.startswith("| soak |")]
    assert left_out.endswith("| not run |")


@pytest.mark.parametrize(
    ("bound", "held"),
    [
        ({"worst_gap_ms": 400}, "1 of 2 ≤ 400 ms"),
        ({"beyond_calm_ms": 400}, "2 of 2 ≤ calm + 400 ms"),
        ({"beyond_reload_ms": 1000}, "2 of 2 ≤ reload + 1000 ms"),
        ({"beyond_prefill_ms": 300}, "1 of 2 ≤ 1.2 prefills + 300 ms"),
        ({}, ""),
    ],
)
def test_gaps_are_held_against_the_parts_bound(bound: dict[str, float], held: str) -> None:
    (row,) = [line for line in digest("t", [], [(Part("a", 1, **bound), REPORT)]).splitlines() if "[a]" in line]
    assert row.split("|")[10].strip() == held


def test_a_failed_part_says_why_and_counts(tmp_path: Path) -> None:
    page = digest("Chaos", [], [(Part("soak", 1), REPORT | {"passed": False, "failures": ["1 requests lost"]})])
    assert "| **failed** |" in page
    assert "- FAILED: 1 requests lost" in page.splitlines()


def test_a_part_that_cannot_be_run_is_told_and_the_next_one_run(tmp_path: Path) -> None:
    """No model is there, so every part ends at once."""
    report = tmp_path / "report.md"
    command = [sys.executable, HERE / "campaign.py", "--minutes=30", "--report", report, "--only=drain,scale"]
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    flags = ["--", f"--model={tmp_path / 'absent'}"]
    done = subprocess.run(list(map(str, [*command, *flags])), capture_output=True, text=True, check=False, env=environ)
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].endswith("0 of 2 parts passed")
    rows = [line for line in report.read_text().splitlines() if "**no report**" in line]
    assert [row.split("|")[1].strip() for row in rows] == ["scale", "drain"]


@pytest.mark.parametrize(
    ("folder", "only", "words"),
    [
        (".", "kill", "--only: 'kill' is not one of kill-shard, "),
        ("absent", "scale", "--report: "),
    ],
)
def test_a_mistake_is_one_line_before_anything_starts(tmp_path: Path, folder: str, only: str, words: str) -> None:
    flags = ["--minutes=30", "--report", tmp_path / folder / "report.md", f"--only={only}"]
    command = [sys.executable, HERE / "campaign.py", *flags]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"chaos: error: {words}")
    assert json.dumps(done.stderr).count("\\n") == 1
