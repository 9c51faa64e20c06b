"""Ids of tool calls are renumbered over the whole conversation, and results follow their calls; new ids are new."""

import random
from typing import Any

import pytest

from expertfleet.gateway.http.errors import ApiError
from expertfleet.gateway.openai.messages import read_messages
from expertfleet.gateway.openai.tool_ids import call_id, renumber


def calls(*ids: str) -> dict[str, Any]:
    made = [{"id": id_, "type": "function", "function": {"name": "f", "arguments": "{}"}} for id_ in ids]
    return {"role": "assistant", "content": None, "tool_calls": made}


def result(id_: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id_, "content": "r"}


def flat(*messages: dict[str, Any]) -> tuple[list[str], int]:
    renumbered, count = renumber(read_messages(list(messages), set()))
    ids = []
    for message in renumbered:
        ids += [call["id"] for call in message.get("tool_calls", [])] + [message.get("tool_call_id", "")]
    return [id_.removeprefix("functions.f:") for id_ in ids if id_], count


def test_foreign_ids_are_counted_over_the_conversation() -> None:
    conversation = (calls("call_a", "toolu_b"), result("toolu_b"), result("call_a"), calls("x"), result("x"))
    assert flat(*conversation) == (["0", "1", "1", "0", "2", "2"], 3)


def test_an_id_used_again_in_a_later_turn_names_the_later_call() -> None:
    assert flat(calls("0"), result("0"), calls("0"), result("0")) == (["0", "0", "1", "1"], 2)


def test_an_id_used_twice_in_one_message_takes_results_in_order() -> None:
    assert flat(calls("a", "a"), result("a"), result("a")) == (["0", "1", "0", "1"], 2)


def test_a_result_without_a_call_is_refused() -> None:
    with pytest.raises(ApiError, match=r"messages\[1\]\.tool_call_id: 'b' is the id of no earlier"):
        flat(calls("a"), result("b"))


@pytest.mark.parametrize(
    ("history", "following"),
    [
        (["functions.f:1"], 2),
        (["functions.f:0", "functions.g:7", "functions.f:3"], 8),
        (["functions.f:9", "functions.f:9"], 10),
        (["functions.f:99999999999999999999"], 100000000000000000000),
        (["functions.f:007"], 8),
        (["functions.mcp__a-b.c:4", "call_a", "toolu_b"], 5),
        (["functions.f:0", "call_a", "call_b"], 3),
        (["functions_f_6"], 7),
        (["f:5"], 6),
        (["call_81", "toolu_99", "chatcmpl-tool-7", "12", "functions.f:x"], 5),
        (["functions.f:" + "9" * 5000], 1),
    ],
)
def test_a_new_number_is_beyond_the_largest_of_the_history(history: list[str], following: int) -> None:
    shown = [str(number) for number in range(len(history))]
    for turns in ([calls(*history)], [calls(id_) for id_ in history]):
        assert flat(*turns) == (shown, following)


def test_results_follow_calls_whatever_their_numbers() -> None:
    turns = (calls("functions.f:7", "call_a"), result("call_a"), result("functions.f:7"), calls("functions.f:1"))
    assert flat(*turns, result("functions.f:1")) == (["0", "1", "1", "0", "2", "2"], 8)


def test_a_growing_conversation_repeats_no_id_and_changes_none_that_was_shown() -> None:
    """The client compacts its history now and then, and brings calls of other makes."""
    rng = random.Random(11)
    history: list[dict[str, Any]] = []
    for turn in range(300):
        shown, following = renumber(read_messages(history, set())) if history else ([], 0)
        held = {call["id"] for message in history for call in message.get("tool_calls", [])}
        own = [call_id("f", following + index) for index in range(rng.randint(1, 3))]
        assert held.isdisjoint(own)
        ids = [f"call_{turn}"] if rng.random() < 0.2 else own
        history += [calls(*ids), *map(result, rng.sample(ids, len(ids)))]
        assert renumber(read_messages(history, set()))[0][: len(shown)] == shown
        if rng.random() < 0.2:
            starts = [at for at, message in enumerate(history) if "tool_calls" in message]
            history = history[rng.choice(starts) :]
