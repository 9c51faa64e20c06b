"""The judge can fail: every fault of a fake server is found, and named for what it is."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from harness.judge import Judgement, judge
from harness.plan import Expect, Step
from harness.steps import Happened
from harness.stream import Recording

NOTHING = Expect(lost=0, different=0)
Drive = Callable[..., Any]


def judge_twice(expect: Expect, runs: tuple[list[Recording], list[Recording]]) -> Judgement:
    calm, again = runs
    return judge(expect, calm, again, [])


def test_the_same_answers_pass(drive_twice: Drive) -> None:
    calm, again = drive_twice("", streams=3)
    judgement = judge(NOTHING, calm, again, [])
    assert not judgement.failures
    assert not judgement.lost
    assert not judgement.different
    assert judgement.calm.num_tokens == judgement.chaos.num_tokens == 36
    assert [worst.request for worst in judgement.chaos.worst] == [0, 1, 2]
    assert calm[0].texts == {"content": "t10 t12 t14 t16 t18 t20 ", "reasoning": "t11 t13 t15 t17 t19 t21 "}


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("refused", "status 503: .*no_replica"),
        ("error frame", "deadline_exceeded: layer 3: no answer"),
        ("broken off", r"the stream ended without \[DONE\]"),
        ("no end", r"the stream ended without \[DONE\]"),
        ("no reason", "no finish reason after 12 tokens"),
        ("not JSON", "a chunk is not JSON: '{'"),
        ("lost chunk", "usage counts 12 tokens, 11 came"),
        ("no usage", "usage counts None tokens, 12 came"),
        ("early end", "ended after 6 of 12 tokens, finish reason length"),
    ],
)
def test_a_lost_request_is_found_with_its_reason(drive_twice: Drive, fault: str, words: str) -> None:
    judgement = judge_twice(NOTHING, drive_twice(fault))
    (found,) = judgement.lost
    assert re.search(words, found.what), found.what
    assert not judgement.different
    assert judgement.failures[0].startswith("1 requests lost, at most 0 tolerated; stream 0: ")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("other token", "token 5 of 12 is -1, was 15"),
        ("other reason", "finish reason stop, was length"),
        ("other text", "the same tokens, but other reasoning: "),
    ],
)
def test_a_different_answer_is_found_with_its_place(drive_twice: Drive, fault: str, words: str) -> None:
    judgement = judge_twice(NOTHING, drive_twice(fault))
    (found,) = judgement.different
    assert found.what.startswith(words)
    assert not judgement.lost
    assert len(judgement.failures) == 1


def test_tolerated_losses_are_no_failure(drive_twice: Drive) -> None:
    judgement = judge_twice(Expect(lost=2, different=0), drive_twice("error frame", streams=2))
    assert len(judgement.lost) == 2
    assert not judgement.failures


def test_a_gap_is_measured_where_it_was(drive_twice: Drive) -> None:
    calm, again = drive_twice("gap", streams=2)
    limits = Expect(lost=0, different=0, worst_gap_ms=500, gap_beyond_calm_ms=100)
    judgement = judge(limits, calm, again, [])
    assert len(judgement.failures) == 2
    for stream, worst in enumerate(judgement.chaos.worst):
        assert worst.request == stream
        assert worst.gap_ms >= 600
        assert worst.at_s < 0.6
    assert not judge(NOTHING, calm, again, []).failures


def test_percentiles_are_ranks() -> None:
    calm = [Recording(0, stamps=[float(second) for second in range(1001)], ended=1000.0)]
    calm[0].stamps[-1] += 6
    gaps = judge(NOTHING, calm, calm, []).calm.gaps
    assert (gaps.p50, gaps.p99, gaps.p999, gaps.worst) == (1000, 1000, 1000, 7000)


def test_a_step_that_was_not_got_over_fails_the_plan() -> None:
    calm = [Recording(0, stamps=[0.0, 0.1], ended=0.2)]
    steps = [
        Happened(Step("kill", "expert-1", at_s=1), 1.0, pid=7, seat_s=2.0, whole_s=12.5),
        Happened(Step("scale", to=4, at_s=2), 2.0, error="no such command"),
    ]
    judgement = judge(Expect(lost=0, different=0, recovery_s=10), calm, calm, steps)
    assert judgement.failures == (
        "scale to 4: no such command",
        "kill expert-1: whole again after 12.5 s, at most 10 tolerated",
    )


def test_what_ran_beside_a_step_is_counted_with_it() -> None:
    calm = [Recording(request, stamps=[0.0, 0.1], token_ids=[1, 2], ended=0.2) for request in range(3)]
    chaos = [
        Recording(0, began=100.0, stamps=[101.0, 105.0], token_ids=[1, 2], ended=105.0),
        Recording(1, began=100.0, stamps=[101.0], token_ids=[1], error="no_replica", ended=106.5),
        Recording(2, began=107.0, stamps=[107.5, 109.5], token_ids=[1, 3], ended=110.0),
        Recording(0, began=120.0, stamps=[121.0, 122.0], token_ids=[1, 2], ended=122.0),
    ]
    steps = [
        Happened(Step("kill", "expert-1", at_s=1), 2.0, whole_s=3.0, over_s=5.0),
        Happened(Step("kill", "controller", after_s=0), 2.0, whole_s=3.0, over_s=5.5),
        Happened(Step("kill", "expert-1", after_recovery_s=1), 6.0, whole_s=3.0, over_s=9.0),
        Happened(Step("kill", "expert-1", after_recovery_s=1), 30.0, whole_s=3.0, over_s=33.0),
    ]
    found = judge(NOTHING, calm, chaos, steps).beside
    assert [(one.lost, one.different, one.worst_gap_ms, one.worst_gap_after_s) for one in found] == [
        (1, 0, 4000, -1), (1, 0, 4000, -1), (1, 1, 2000, 1.5), (0, 0, None, None),
    ]  # fmt: skip


def test_a_gap_is_held_against_the_first_token_of_its_own_stream_in_calm() -> None:
    calm = [Recording(0, began=5.0, stamps=[15.0, 15.1], ended=16.0), Recording(1, stamps=[1.0, 1.1], ended=2.0)]
    chaos = [
        Recording(0, began=100.0, stamps=[101.0, 105.0], ended=105.0),
        Recording(1, began=100.0, stamps=[101.0, 103.0], ended=106.5),
    ]
    steps = [Happened(Step("kill", "attention-0", at_s=1), 2.0, whole_s=3.0, over_s=5.0)]
    (found,) = judge(NOTHING, calm, chaos, steps).beside
    assert found.beyond_prefill_ms == pytest.approx(2000 - 1200)


def test_without_a_gap_nothing_was_measured() -> None:
    calm = [Recording(0, stamps=[0.0], ended=0.2)]
    assert judge(NOTHING, calm, calm, []).failures == ("no stream had two chunks, so no gap was measured",)
