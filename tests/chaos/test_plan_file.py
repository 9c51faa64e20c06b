import random
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
from harness.plan import Expect, FleetSize, Load, Plan, Step
from harness.plan_file import PlanError, read_plan
from harness.scaling import Scaling

PLANS = sorted(Path(__file__).with_name("plans").glob("*.toml"))
GOOD = """
title = "t"
[fleet]
expert_shards = 3
[load]
max_tokens = 50
[[step]]
do = "kill"
target = "expert-1"
at_token = 10
[expect]
lost = 0
different = 0
"""
SOAK = """
title = "t"
[load]
max_tokens = 50
[soak]
minutes = 1
[[soak.step]]
do = "kill"
target = "random expert"
[expect]
lost = 0
different = 0
"""
SCALING = """
title = "t"
[load]
max_tokens = 50
[scaling]
most = 4
[expect]
lost = 0
different = 0
"""


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_the_plans_that_come_along_can_be_read(path: Path) -> None:
    assert read_plan(path).title


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("max_tokens", "max_token", "load.max_token: unknown key, with the value 50; did you mean 'max_tokens'?"),
        ('title = "t"', 'titel = "t"', "titel: unknown key, with the value 't'; did you mean 'title'?"),
        ("lost = 0", "lots = 0\nzzz = 1", "expect.lots: unknown key, with the value 0; did you mean 'lost'?"),
        ('title = "t"', "", "title: this key is required"),
        ("lost = 0", "", "expect.lost: this key is required"),
        ("max_tokens = 50", "max_tokens = '50'", "load.max_tokens: '50' is not a whole number"),
        ("max_tokens = 50", "max_tokens = 50.0", "load.max_tokens: 50.0 is not a whole number"),
        ("max_tokens = 50", "max_tokens = true", "load.max_tokens: True is not a whole number"),
        ("max_tokens = 50", "max_tokens = 0", "load.max_tokens: 0 is not within 1 to 1048576"),
        ("max_tokens = 50", "max_tokens = 50\nstreams = 0", "load.streams: 0 is not within 1 to 1024"),
        ("max_tokens = 50", "max_tokens = 50\nsampling = 'hot'", "load.sampling: 'hot' is not one of greedy, seeded"),
        ("max_tokens = 50", "max_tokens = 50\nprompt_tokens = 4", "load.prompt_tokens: 4 is not a list"),
        ("max_tokens = 50", "max_tokens = 50\nprompt_tokens = []", "load.prompt_tokens: [] names no length"),
        ("max_tokens = 50", "max_tokens = 50\nprompt_tokens = [1, 'a']", "load.prompt_tokens[1]: 'a' is not a whole"),
        ("max_tokens = 50", "max_tokens = 50\nignore_eos = 1", "load.ignore_eos: 1 is not true or false"),
        ("[fleet]", "[[fleet]]", "fleet: [{'expert_shards': 3}] is not a table"),
        ("[[step]]", "[step]", "step: {'do': 'kill', 'target': 'expert-1', 'at_token': 10} is not a list"),
        ("expert_shards = 3", "expert_shards = 1", "fleet.replicas: 2 is not within 1 to 1"),
        ('"expert-1"', '"expert-3"', "step[0].target: 'expert-3' is not in a fleet whose expert seats are 0 to 2"),
        (
            '"expert-1"',
            '"attention-1"',
            "step[0].target: 'attention-1' is not in a fleet whose attention seats are 0 to 0",
        ),
        ('"expert-1"', '"gateway-1"', "step[0].target: 'gateway-1' is not in a fleet whose gateway seats are 0 to 0"),
        ('"expert-1"', '"expert-01"', "step[0].target: 'expert-01' is not one of expert-N"),
        ('"expert-1"', '"raylet"', "step[0].target: 'raylet' is not one of expert-N"),
        ('target = "expert-1"', "", "step[0].target: '' is not one of expert-N"),
        (
            '"kill"',
            '"slay"',
            "step[0].do: 'slay' is not one of kill, terminate, stop, cut, delay, loss, corrupt, scale, drain",
        ),
        ('"kill"', '"stop"', "step[0].for_s: 'stop' needs it"),
        ('"kill"', '"stop"\nfor_s = 0', "step[0].for_s: 0 is not within 0.1 to 3600"),
        (
            '"kill"',
            '"kill"\nfor_s = 2',
            "step[0].for_s: 2 is for 'stop', 'cut', 'delay', 'loss', 'corrupt', 'away' and 'fill' alone,",
        ),
        ('"kill"', '"kill"\nms = 2', "step[0].ms: 2 is for 'delay' alone, not for 'kill'"),
        ('"kill"', '"delay"\nfor_s = 2', "step[0].ms: 'delay' needs it"),
        ('"kill"', '"delay"\nms = 200', "step[0].for_s: 'delay' needs it"),
        ('"kill"', '"delay"\nfor_s = 2\nms = 10_001', "step[0].ms: 10001 is not within 1 to 10000"),
        ('"kill"', '"delay"\nfor_s = 2\nms = "9"', "step[0].ms: '9' is not a number"),
        ('"kill"', '"loss"\nfor_s = 2', "step[0].percent: 'loss' needs it"),
        ('"kill"', '"loss"\nfor_s = 2\npercent = 0', "step[0].percent: 0 is not within 0.1 to 100"),
        (
            '"kill"',
            '"stop"\nfor_s = 2\npercent = 5',
            "step[0].percent: 5 is for 'loss' and 'corrupt' alone, not for 'stop'",
        ),
        ('"kill"', '"scale"\nto = 2', "step[0].target: 'expert-1' is not for 'scale'"),
        ('"kill"\ntarget = "expert-1"', '"scale"', "step[0].to: 'scale' needs it"),
        ('"kill"\ntarget = "expert-1"', '"scale"\nto = 65', "step[0].to: 65 is not within 1 to 64"),
        ('"kill"\ntarget = "expert-1"', '"drain"\ntarget = "controller"', "step[0].target: 'controller' is not one of"),
        ('"kill"', '"cut"\nfor_s = 1', "step[0].do: 'cut' is for a fleet of machines alone"),
        ('"kill"', '"delay"\nfor_s = 1\nms = 9', "step[0].do: 'delay' is for a fleet of machines alone"),
        ('"kill"', '"loss"\nfor_s = 1\npercent = 9', "step[0].do: 'loss' is for a fleet of machines alone"),
        (
            '"kill"\ntarget = "expert-1"',
            '"loss"\nfor_s = 1\npercent = 9\ntarget = "gateway-0"',
            "step[0].target: 'gateway-0' is not one of expert-N, random expert, as 'loss' needs",
        ),
        (
            '"kill"\ntarget = "expert-1"',
            '"cut"\nfor_s = 1\ntarget = "attention-0"',
            "step[0].target: 'attention-0' is not one",
        ),
        (
            "expert_shards = 3",
            "expert_shards = 3\nmachines = true",
            "step[0].do: 'kill' is not for a fleet of machines",
        ),
        ("expert_shards = 3", "machines = true\nnodes = true", "fleet.nodes: True is not for a fleet of machines"),
        ("expert_shards = 3", "nodes = 1", "fleet.nodes: 1 is not true or false"),
        (
            '"expert-1"',
            '"raylet of expert-1"',
            "step[0].target: 'raylet of expert-1' is for a fleet of nodes alone; give [fleet] nodes = true",
        ),
        ('"expert-1"', '"raylet of expert-3"', "step[0].target: 'raylet of expert-3' is not in a fleet whose expert"),
        ('"expert-1"', '"raylet of gateway-0"', "step[0].target: 'raylet of gateway-0' is not one of"),
        (
            '"kill"\ntarget = "expert-1"',
            '"terminate"\ntarget = "raylet of expert-1"',
            "step[0].target: 'raylet of expert-1' is not one of",
        ),
        ('"kill"', '"away"', "step[0].for_s: 'away' needs it"),
        ('"kill"', '"away"\nfor_s = 1', "step[0].target: 'expert-1' is not one of head, as 'away' needs"),
        (
            '"kill"\ntarget = "expert-1"',
            '"away"\nfor_s = 1\ntarget = "head"',
            "step[0].do: 'away' is for a fleet of nodes alone; give [fleet] nodes = true",
        ),
        ('title = "t"', 'title = "t"\nrepeat = 0', "repeat: 0 is not within 1 to 10000"),
        ("at_token = 10", "", "step[0]: nothing says when; give one of at_s, at_token, after_s, after_recovery_s"),
        ("at_token = 10", "at_token = 10\nat_s = 1", "step[0]: at_s and at_token says when; give one of"),
        ("at_token = 10", "at_token = 50", "step[0].at_token: 50 is past 49, the last but one of max_tokens"),
        ("at_token = 10", "at_s = -1", "step[0].at_s: -1 is not within 0 to 86400"),
        ("at_token = 10", "at_s = nan", "step[0].at_s: nan is not within 0 to 86400"),
        ("at_token = 10", "after_s = -1", "step[0].after_s: -1 is not within 0 to 86400"),
        ("different = 0", "different = 0\nfd_growth = 0.5", "expect.fd_growth: 0.5 is not a whole number"),
        ("different = 0", "different = 0\nreplaced = -1", "expect.replaced: -1 is not within 0 to"),
        ("different = 0", "different = -1", "expect.different: -1 is not within 0 to"),
        (
            '"kill"\ntarget = "expert-1"',
            '"fill"\nfor_s = 1',
            "step[0].do: 'fill' is for a fleet with a disk of its own;",
        ),
        (
            '"kill"\ntarget = "expert-1"',
            '"crash"\ntarget = "expert-1"',
            "step[0].target: 'expert-1' is not for 'crash'",
        ),
        ("expert_shards = 3", "disk_mib = 63", "fleet.disk_mib: 63 is not within 64 to"),
        (
            "expert_shards = 3",
            "max_worker_deaths = 3\nnodes = true",
            "fleet.max_worker_deaths: 3 is for a fleet that serve starts",
        ),
        ("expert_shards = 3", "max_worker_deaths = 0", "fleet.max_worker_deaths: 0 is not within 1 to 1000"),
        ("expert_shards = 3", "tls = true", "fleet.tls: True is for a fleet of machines alone"),
        ("max_tokens = 50", "max_tokens = 50\ncalm_gap_ms = 0", "load.calm_gap_ms: 0 is not within 1 to 60000"),
        ('title = "t"', 'title = "t"\nwithin_min = 0', "within_min: 0 is not within 0.1 to 10000"),
        ("different = 0", "different = 0\nworst_gap_ms = -1", "expect.worst_gap_ms: -1 is not within 0 to"),
    ],
)
def test_a_mistake_names_file_key_and_value(tmp_path: Path, old: str, new: str, words: str) -> None:
    check_refused(tmp_path, GOOD, old, new, words)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("minutes = 1", "minutes = 0", "soak.minutes: 0 is not within 0.1 to 10000"),
        ("minutes = 1", "minutes = 1\npause_s = [2, 1]", "soak.pause_s: [2, 1] is not [shortest, longest]"),
        ("minutes = 1", "minutes = 1\npause_s = [1]", "soak.pause_s: [1] is not [shortest, longest]"),
        (
            '"random expert"',
            '"random expert"\nat_s = 1',
            "soak.step[0].at_s: a soak's steps come when the pause is over",
        ),
        ('"random expert"', '"expert-7"', "soak.step[0].target: 'expert-7' is not in a fleet"),
        ('[[soak.step]]\ndo = "kill"\ntarget = "random expert"', "step = []", "soak.step: a soak needs at least one"),
        (SOAK[SOAK.index("[soak]") : SOAK.index("[expect]")], "", "step: the plan has neither steps nor a soak nor"),
        ('title = "t"', 'title = "t"\nrepeat = 2', "repeat: 2 rounds of no step"),
    ],
)
def test_a_mistake_in_a_soak_as_well(tmp_path: Path, old: str, new: str, words: str) -> None:
    check_refused(tmp_path, SOAK, old, new, words)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("most = 4", "most = 3", "scaling.most: 3 is not within 4 to 64"),
        ("most = 4", "", "scaling.most: this key is required"),
        ("most = 4", "most = 4\ncycles = 1", "scaling.cycles: 1 is not within 2 to 10000"),
        ("most = 4", "most = 4\ncycles = 5", "scaling.baseline: 5 is not within 1 to 4"),
        ("[scaling]", "[fleet]\nnodes = true\n[scaling]", "scaling: it is not for a fleet of machines or nodes"),
    ],
)
def test_a_mistake_in_scaling_as_well(tmp_path: Path, old: str, new: str, words: str) -> None:
    check_refused(tmp_path, SCALING, old, new, words)


@pytest.mark.parametrize("when", ["at_s = 1", "at_token = 11"])
def test_only_the_first_step_of_a_round_comes_at_a_moment_of_the_load(tmp_path: Path, when: str) -> None:
    second = GOOD.replace("[expect]", '[[step]]\ndo = "kill"\ntarget = "controller"\nafter_s = 0\n[expect]')
    rounds = second.replace('title = "t"', 'title = "t"\nrepeat = 2')
    words = f"step[1].{when.split()[0]}: a round cannot wait for a moment of the load again; give after_s"
    check_refused(tmp_path, rounds, "after_s = 0", when, words)


def test_a_round_begins_when_the_fleet_has_got_over_the_one_before() -> None:
    steps = (Step("kill", "expert-1", at_token=5), Step("kill", "controller", after_s=0))
    plan = Plan("t", Load(max_tokens=50), Expect(0, 0), step=steps, repeat=3)
    again = (replace(steps[0], at_token=None, after_recovery_s=1.0), steps[1])
    assert tuple(plan.rounds()) == (*steps, *again, *again)
    late = replace(steps[0], at_token=None, after_recovery_s=7.0)
    assert tuple(replace(plan, step=(late,)).rounds()) == (late, late, late)


def test_a_cycle_ends_at_the_first_size_and_expert_0_stays() -> None:
    once, again, other = (list(Scaling(most=5).draw(random.Random(seed), 2)) for seed in (1, 1, 2))
    assert once == again != other
    assert len(once) == 20
    assert {change for changes in once for change in changes[:1]} == {3, 4, 5}
    assert {changes[1] for changes in once} >= {2, "expert-1", "expert-2"}
    assert not any("expert-0" in changes for changes in once)
    for grown, *rest in once:
        assert rest == [2] or (len(rest) == int(grown) - 2 and len(set(rest)) == len(rest))


def check_refused(tmp_path: Path, text: str, old: str, new: str, words: str) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(text)
    read_plan(path)
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    with pytest.raises(PlanError) as refusal:
        read_plan(path)
    assert str(refusal.value).startswith(f"{path}: {words}"), refusal.value


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"absent\.toml: No such file"):
        read_plan(tmp_path / "absent.toml")
    (tmp_path / "broken.toml").write_text("title =")
    with pytest.raises(PlanError, match=r"broken\.toml: not TOML: "):
        read_plan(tmp_path / "broken.toml")


def test_random_targets_are_the_seeds(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(SOAK)
    soak = read_plan(tmp_path / "plan.toml").soak
    assert soak is not None
    once, again, other = (list(islice(soak.draw(random.Random(seed), FleetSize()), 20)) for seed in (1, 1, 2))
    assert once == again != other
    assert {step.target for step in once} == {"expert-0", "expert-1", "expert-2"}
    assert all(1 <= (step.after_recovery_s or 0) <= 5 for step in once)
    assert Step("kill", "controller", at_s=1).drawn(random.Random(1), FleetSize()).target == "controller"
