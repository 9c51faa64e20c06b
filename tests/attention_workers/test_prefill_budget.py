"""Steps with answers keep to their time on machines of any speed, and prompts get their half."""

import random

import pytest

from expertfleet.attention_workers.prefill_budget import PrefillBudget


def step_s(answers: int, prompt_tokens: int, fixed_s: float, token_s: float) -> float:
    return fixed_s + (answers + prompt_tokens) * token_s * random.uniform(0.9, 1.1)


@pytest.mark.parametrize(
    ("fixed_s", "token_s"), [(0.005, 0.00002), (0.04, 0.001), (0.04, 0.004), (0.5, 0.001), (0.5, 0.02)]
)
def test_a_step_with_answers_takes_the_target_or_twice_one_without(fixed_s: float, token_s: float) -> None:
    pace = PrefillBudget(0.1, 512)
    for _ in range(10):
        pace.took_decode_only(step_s(4, 0, fixed_s, token_s))
    aim = max(0.1, 2 * (fixed_s + 4 * token_s))
    taken = []
    for _ in range(60):
        limit = pace.limit
        taken.append(step_s(4, limit, fixed_s, token_s))
        pace.took(limit, taken[-1], limited=True)
    slowest = step_s(4, 512, fixed_s, token_s)
    for seconds in taken[20:]:
        assert min(aim, slowest) * 0.7 <= seconds <= aim * 1.3 or pace.limit == 16


def test_a_step_of_prompts_alone_already_says_what_is_too_many() -> None:
    pace = PrefillBudget(0.1, 512)
    pace.took(512, 0.8, limited=False)
    assert pace.limit == 64
    pace.took(1, 0.09, limited=False)
    pace.took(512, 0.4, limited=False)  # is no reason to take more along than what was tried with answers
    assert pace.limit == 64


def test_a_step_that_waited_for_a_shard_changes_little() -> None:
    pace = PrefillBudget(0.1, 512)
    for seconds in (0.1, 0.1, 60.0):
        pace.took_decode_only(seconds)
    pace.took(512, 0.5, limited=True)
    assert pace.limit == 256


def test_few_prompt_tokens_say_nothing_about_many() -> None:
    pace = PrefillBudget(0.1, 512)
    pace.took(512, 0.8, limited=False)
    pace.took(3, 0.02, limited=True)
    assert pace.limit == 64
    pace.took(64, 0.02, limited=True)
    assert pace.limit == 80


def test_the_budget_of_a_step_is_never_exceeded() -> None:
    for most in (1, 8, 512):
        pace = PrefillBudget(0.1, most)
        for _ in range(50):
            pace.took(random.randrange(1, most + 1), random.uniform(1e-4, 10), random.random() < 0.5)
            assert min(16, most) <= pace.limit <= most
