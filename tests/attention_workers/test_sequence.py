"""A sequence ends where it should, and a thinking budget forces what it says."""

import pytest

from expertfleet.attention_workers.sequence import SamplingParams, Sequence, ThinkingBudget


def make(tokens: list[int], num_prompt: int, **more: object) -> Sequence:
    return Sequence("r", tokens, num_prompt, 100, SamplingParams(), lambda update: None, **more)


def test_ends_on_a_stop_id_or_the_length() -> None:
    sequence = make([1, 2], 2, stop_ids=frozenset({9}))
    assert sequence.append(5) == ""
    assert sequence.append(9) == "stop"
    short = Sequence("r", [1], 1, 2, SamplingParams(), lambda update: None)
    assert [short.append(3), short.append(4)] == ["", "length"]


def test_budget_forces_the_closing_tokens_once_it_is_spent() -> None:
    budget = ThinkingBudget(3, 50, 51, (60, 51))
    sequence = make([50, 1], 2, budget=budget)
    assert sequence.forced_token() is None, "an opening in the prompt does not count"
    for token in (50, 1, 2, 3):
        assert sequence.forced_token() is None
        sequence.append(token)
    for forced in (60, 51):
        assert sequence.forced_token() == forced
        sequence.append(forced)
    assert sequence.forced_token() is None


def test_budget_is_the_same_for_a_resubmitted_sequence() -> None:
    budget = ThinkingBudget(2, 50, 51, (60, 61, 51))
    output = [50, 1, 2, 60]
    resumed = make([7, 7, *output], 2, budget=budget)
    assert resumed.forced_token() == 61


def test_thinking_that_ends_in_time_is_left_alone() -> None:
    sequence = make([7, 50, 1, 51, 2, 3, 4, 5], 1, budget=ThinkingBudget(2, 50, 51, (51,)))
    assert sequence.forced_token() is None


def test_forced_ids_behind_the_closing_one_are_emitted_too() -> None:
    sequence = make([7], 1, budget=ThinkingBudget(2, 50, 51, (60, 51, 61)))
    for token in (50, 1, 2):
        sequence.append(token)
    for forced in (60, 51, 61):
        assert sequence.forced_token() == forced
        sequence.append(forced)
    assert sequence.forced_token() is None


def emitted(sequence: Sequence, wished: list[int]) -> list[int]:
    """What comes out where the model would say ``wished``."""
    for token in wished:
        forced = sequence.forced_token()
        sequence.append(token if forced is None else forced)
    return sequence.tokens[sequence.num_prompt :]


@pytest.mark.parametrize(
    ("budget", "wished", "expected"),
    [
        (0, [1, 2, 3], [51, 2, 3]),
        (2, [1, 2, 3, 4], [1, 2, 51, 4]),
        (2, [1, 51, 2, 3, 4], [1, 51, 2, 3, 4]),
        (2, [1, 51, 50, 2, 3, 4], [1, 51, 50, 2, 3, 51]),
        # an opening inside the section opens nothing, and does not begin the count anew
        (3, [1, 50, 50, 50, 50], [1, 50, 50, 51, 50]),
        # a call ends the section for good
        (2, [1, 70, 2, 3, 4, 5], [1, 70, 2, 3, 4, 5]),
        (2, [1, 51, 71, 50, 2, 3, 4], [1, 51, 71, 50, 2, 3, 4]),
    ],
)
def test_a_budget_begun_in_the_prompt_counts_from_the_first_token(
    budget: int, wished: list[int], expected: list[int]
) -> None:
    limits = ThinkingBudget(budget, 50, 51, (51,), frozenset({70, 71}), begun=True)
    assert emitted(make([50, 9, 9, 9], 4, budget=limits), wished) == expected
    for num_before in range(len(expected) + 1):
        resumed = make([50, 9, 9, 9, *expected[:num_before]], 4, budget=limits)
        assert emitted(resumed, wished[num_before:]) == expected


def test_an_opening_inside_a_section_of_the_outputs_own_does_not_begin_the_count_anew() -> None:
    sequence = make([7], 1, budget=ThinkingBudget(3, 50, 51, (51,)))
    assert emitted(sequence, [50, 1, 50, 2, 3, 4]) == [50, 1, 50, 2, 51, 4]


def test_a_call_ends_a_section_of_the_outputs_own_for_good() -> None:
    sequence = make([7], 1, budget=ThinkingBudget(2, 50, 51, (51,), frozenset({70})))
    wished = [50, 1, 70, 2, 50, 3, 4, 5, 6]
    assert emitted(sequence, wished) == wished


def test_many_forced_ids_are_emitted_from_wherever_a_sequence_goes_on() -> None:
    limits = ThinkingBudget(1, 50, 51, (60, 51, 61), begun=True)
    whole = [1, 60, 51, 61, 5, 50, 6, 60]
    for num_before in range(len(whole)):
        assert (
            emitted(make([50, *whole[:num_before]], 1, budget=limits), [1, 2, 3, 4, 5, 50, 6, 7][num_before:]) == whole
        )
