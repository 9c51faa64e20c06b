"""A sequence ends where it should, and a thinking budget forces what it says."""

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
