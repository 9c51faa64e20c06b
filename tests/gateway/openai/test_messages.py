"""Messages as clients send them, good and bad."""

from typing import Any

import pytest

from expertfleet.gateway.http.errors import ApiError
from expertfleet.gateway.openai.messages import read_messages


def one(**message: Any) -> dict[str, Any]:
    (read,) = read_messages([message], set())
    return read


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert one(role="user", content=parts, name="bob") == {"role": "user", "content": "ab", "name": "bob"}


def test_developer_is_system() -> None:
    assert one(role="developer", content="x")["role"] == "system"


def test_reasoning_has_two_names() -> None:
    for name in ("reasoning", "reasoning_content"):
        assert one(role="assistant", content="x", **{name: "r"})["reasoning_content"] == "r"


def test_a_message_that_was_an_answer_comes_back_with_its_nulls() -> None:
    nulls = dict.fromkeys(["refusal", "audio", "function_call", "annotations", "reasoning_content", "tool_calls"])
    assert one(role="assistant", content="x", **nulls) == {"role": "assistant", "content": "x"}
    called = {"role": "assistant", "content": None}
    assert one(role="assistant", content=None, annotations=[], tool_calls=[]) == called
    assert one(role="assistant") == called


def test_calls_keep_what_the_template_needs() -> None:
    call = {"id": "1", "index": 0, "type": "function", "function": {"name": "f", "arguments": "{}"}}
    read = one(role="assistant", content=None, tool_calls=[call])
    assert read["tool_calls"] == [{key: value for key, value in call.items() if key != "index"}]


@pytest.mark.parametrize(
    ("message", "where"),
    [
        ({"role": "robot", "content": "x"}, "messages[0].role"),
        ({"content": "x"}, "messages[0].role"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "user", "content": None}, "messages[0].content"),
        ({"role": "user", "content": 5}, "messages[0].content"),
        ({"role": "user", "content": [5]}, "messages[0].content[0]"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0].text"),
        ({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}, "messages[0].content[1].type"),
        ({"role": "user", "content": "x", "name": "a b"}, "messages[0].name"),
        ({"role": "user", "content": "x", "name": "<|im_end|>"}, "messages[0].name"),
        ({"role": "user", "content": "x", "contnet": "y"}, "messages[0].contnet"),
        ({"role": "user", "content": "x", "tool_calls": [{}]}, "messages[0].tool_calls"),
        ({"role": "assistant", "content": "x", "partial": True}, "messages[0].partial"),
        ({"role": "assistant", "refusal": "no"}, "messages[0].refusal"),
        ({"role": "assistant", "tool_calls": "x"}, "messages[0].tool_calls"),
        ({"role": "assistant", "tool_calls": [{"id": "1"}]}, "messages[0].tool_calls[0].function"),
        ({"role": "assistant", "tool_calls": [{"id": "1", "type": "custom"}]}, "messages[0].tool_calls[0].type"),
        ({"role": "tool", "content": "x"}, "messages[0].tool_call_id"),
    ],
)  # fmt: skip
def test_bad_messages_are_named(message: dict[str, Any], where: str) -> None:
    with pytest.raises(ApiError) as caught:
        read_messages([message], set())
    assert caught.value.status == 400
    assert caught.value.param == where
    assert str(caught.value).startswith(where)
