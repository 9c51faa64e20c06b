"""Ids of tool calls are renumbered over the whole conversation, and results follow their calls."""

from typing import Any

import pytest

from expertfleet.gateway.errors import ApiError
from expertfleet.gateway.messages import read_messages
from expertfleet.gateway.tool_ids import renumber


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
