"""Whatever a client sends, it gets OpenAI's error shape and never a 500."""

import json
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from expertfleet.gateway.openai.inner_fields import CONTENT, REPEATED_IN_MESSAGES
from expertfleet.gateway.openai.schemas import ChatRequest, CompletionRequest

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}


def error_of(response: Any, status: int) -> dict[str, Any]:
    assert response.status_code == status
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return dict(error)


@pytest.mark.parametrize("body", [b"{", b"", b"[]", b'{"model": NaN}', b"\xff"])
def test_malformed_json(rig: Any, body: bytes) -> None:
    assert error_of(rig.client.post("/v1/chat/completions", content=body), 400)["code"] == "malformed_json"


def test_unknown_path_and_wrong_method(rig: Any) -> None:
    error_of(rig.client.get("/v1/nothing"), 404)
    error_of(rig.client.get("/v1/chat/completions"), 405)
    error_of(rig.admin.get("/nothing"), 404)


def test_a_body_beyond_the_limit(rig: Any) -> None:
    response = rig.client.post("/v1/completions", content=iter([b" " * (1 << 20)] * 33))
    assert "33554432 bytes" in error_of(response, 413)["message"]


def test_an_encoded_body(rig: Any) -> None:
    error_of(rig.client.post("/v1/completions", content=b"x", headers={"content-encoding": "gzip"}), 415)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages[0].content[0].type"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"logit_bias": {"99999999": 1}}, "logit_bias.99999999"),
        ({"stop_token_ids": [99999999]}, "stop_token_ids[0]"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"nonsense": 1}, "nonsense"),
    ],
)  # fmt: skip
def test_a_bad_field_is_named(rig: Any, fields: dict[str, Any], param: str) -> None:
    assert error_of(rig.chat(**fields), 400)["param"] == param


def deep(levels: int) -> Any:
    return json.loads('{"a":' * levels + "1" + "}" * levels)


def tool(**function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f"} | function}


def call(arguments: Any) -> dict[str, Any]:
    return {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}


# Field → values that are wrong, where the error says it is, and what it says of the value and the limit.
WRONG: dict[str, list[tuple[Any, str, str]]] = {
    "model": [(5, "model", "5"), ("", "model", "at least 1"), ("no/such", "model", "'no/such' does not exist")],
    "temperature": [(3, "temperature", "less than or equal to 2 (got 3)"), ("1", "temperature", "number (got '1')")],
    "top_p": [(1.5, "top_p", "less than or equal to 1 (got 1.5)"), (1e-9, "top_p", "equal to 0.00000001 (got 1e-09)")],
    "top_k": [(-2, "top_k", "equal to -1 (got -2)")],
    "min_p": [(2, "min_p", "equal to 1 (got 2)")],
    "presence_penalty": [(3, "presence_penalty", "equal to 2 (got 3)")],
    "frequency_penalty": [(-3, "frequency_penalty", "equal to -2 (got -3)")],
    "repetition_penalty": [(0, "repetition_penalty", "equal to 0.01 (got 0)")],
    "logit_bias": [
        ({"5": 101}, "logit_bias.5", "equal to 100 (got 101)"), ({"a": 1}, "logit_bias.a", "token id"),
        ({"5": 1, "x" * 300: 1}, "logit_bias." + "x" * 80, "token id"), ({"5": "x"}, "logit_bias.5", "number (got 'x')"),
        ({"99999999": 1}, "logit_bias.99999999", "not in the vocabulary"), ([1], "logit_bias", "valid object"),
        ({str(id_): 1 for id_ in range(1025)}, "logit_bias", "at most 1024"),
    ],
    "seed": [(1 << 64, "seed", "less than 18446744073709551616"), (1.5, "seed", "1.5")],
    "n": [(9, "n", "equal to 8 (got 9)"), (0, "n", "equal to 1 (got 0)"), (True, "n", "True")],
    "stop": [
        ("", "stop", "at least 1 character (got '')"), (["a", ""], "stop[1]", "at least 1"), ("x" * 257, "stop", "at most 256"),
        (["a", "b", "x" * 257], "stop[2]", "at most 256"), (["x"] * 17, "stop", "at most 16"), ([1], "stop[0]", "got 1"), (5, "stop", "5"),
    ],
    "stop_token_ids": [
        ([1, -1], "stop_token_ids[1]", "equal to 0 (got -1)"), ([1, 10**8], "stop_token_ids[1]", "not in the vocabulary"),
        (["1"], "stop_token_ids[0]", "'1'"), ([1] * 65, "stop_token_ids", "at most 64"),
    ],
    "include_stop_str_in_output": [("yes", "include_stop_str_in_output", "'yes'")],
    "ignore_eos": [(1, "ignore_eos", "got 1")],
    "max_tokens": [(0, "max_tokens", "equal to 1 (got 0)"), (200_000, "max_tokens", "4096 tokens"), ("9", "max_tokens", "'9'")],
    "thinking_token_budget": [(-1, "thinking_token_budget", "equal to 0 (got -1)")],
    "stream": [("yes", "stream", "'yes'")],
    "stream_options": [
        ({}, "stream_options", "only allowed with stream true"), (5, "stream_options", "valid object (got 5)"),
        ({"include_usage": 1}, "stream_options.include_usage", "got 1"), ({"usage": True}, "stream_options.usage", "unknown"),
    ],
    "return_token_ids": [("x", "return_token_ids", "'x'")],
    "priority": [(256, "priority", "equal to 255 (got 256)")],
    "cache_salt": [("", "cache_salt", "at least 1"), ("x" * 257, "cache_salt", "at most 256")],
    "request_id": [("a b", "request_id", "'a b'"), ("x" * 129, "request_id", "at most 128")],
    "timeout": [(0, "timeout", "greater than 0 (got 0)"), (10**6, "timeout", "equal to 86400")],
}  # fmt: skip
CHAT_WRONG: dict[str, list[tuple[Any, str, str]]] = WRONG | {
    "messages": [
        ([], "messages", "at least 1"), ("hi", "messages", "'hi'"), ([5], "messages[0]", "5"),
        ([{"role": "user", "content": "x"}, {"role": "robot", "content": "x"}], "messages[1].role", "'robot' is not one of"),
        ([{"role": "user", "content": "x"}, {"role": "user"}], "messages[1].content", "required"),
        ([{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "text", "text": 5}]}], "messages[0].content[1].text", "5"),
        ([{"role": "user", "content": "x", "name": 5}], "messages[0].name", "5 must have 1 to 64"),
        ([{"role": "user", "content": "x", "name": "y" * 65}], "messages[0].name", "1 to 64"),
        ([{"role": "assistant", "tool_calls": [call("{}"), call(5)]}], "messages[0].tool_calls[1].function.arguments", "5"),
        ([{"role": "assistant", "tool_calls": [call(deep(61))]}], "messages[0].tool_calls[0].function.arguments", "60 levels"),
        ([{"role": "assistant", "tool_calls": [call("{}") | {"id": 5}]}], "messages[0].tool_calls[0].id", "5"),
        ([{"role": "assistant", "reasoning": 5}], "messages[0].reasoning", "5 is not a string"),
        ([{"role": "user", "content": "x"}, {"role": "tool", "content": "x", "tool_call_id": "7"}], "messages[1].tool_call_id", "'7'"),
        ([{"role": "user", "content": "a " * 9000}], "messages", "4096 tokens"),
        ([{"role": "user", "content": deep(200)}], "messages[0].content.a", "100 levels"),
    ],
    "tools": [
        (5, "tools", "5"), ([tool()] * 129, "tools", "at most 128"), ([tool(), 5], "tools[1]", "5"), ([{}], "tools[0].type", "is required"),
        ([{"type": "web_search"}], "tools[0].type", "only 'function'"),
        ([tool(), {"type": "function"}], "tools[1].function", "is required"), ([tool(), tool()], "tools[1].function.name", "twice"),
        ([tool(name="a b")], "tools[0].function.name", "'a b' must have 1 to 64"), ([tool(description=5)], "tools[0].function.description", "5"),
        ([tool(name=str(i)) for i in range(3)] + [tool(parameters=[1])], "tools[3].function.parameters", "[1]"),
        ([tool(name=str(i)) for i in range(3)] + [tool(parameters=deep(61))], "tools[3].function.parameters", "60 levels"),
        ([tool(name=str(i)) for i in range(3)] + [tool(parameters=deep(500))], "tools[3].function.parameters", "100 levels"),
        ([tool(strict="yes")], "tools[0].function.strict", "'yes'"), ([tool(input_schema={"a": 1})], "tools[0].function.input_schema", "parameters"),
    ],
    "tool_choice": [("some", "tool_choice", "'some'"), (5, "tool_choice", "5"), ({"type": "function", "function": {"name": "f"}}, "tool_choice", "named")],
    "parallel_tool_calls": [("no", "parallel_tool_calls", "'no'")],
    "max_completion_tokens": [
        (200_000, "max_completion_tokens", "4096 tokens"), (0, "max_completion_tokens", "equal to 1 (got 0)"),
    ],
    "logprobs": [(1, "logprobs", "got 1")],
    "top_logprobs": [(21, "top_logprobs", "equal to 20 (got 21)"), (3, "top_logprobs", "only allowed with logprobs true")],
}  # fmt: skip
COMPLETION_WRONG: dict[str, list[tuple[Any, str, str]]] = WRONG | {
    "prompt": [
        (5, "prompt", "5"), ("", "prompt", "at least one token"), ([], "prompt", "[]"), (["a", ""], "prompt[1]", "at least one"),
        ([1, 10**9], "prompt[1]", "1000000000 is no token id"), ([[1], [1, "a"]], "prompt[1][1]", "'a'"), (["a", 5], "prompt[1]", "5"),
        (["a"] * 129, "prompt", "limit of 128"), ("a " * 9000, "prompt", "4096 tokens"), ([5] * 4096, "prompt", "4096 tokens"),
        (["a", "b", "a " * 9000], "prompt[2]", "4096 tokens"), ([[5], [5] * 4096], "prompt[1]", "4096 tokens"),
    ],
    "logprobs": [(21, "logprobs", "equal to 20 (got 21)"), (True, "logprobs", "True")],
    "skip_special_tokens": [(0, "skip_special_tokens", "got 0")],
}  # fmt: skip


def test_every_field_has_a_wrong_value() -> None:
    assert set(CHAT_WRONG) == set(ChatRequest.model_fields)
    assert set(COMPLETION_WRONG) == set(CompletionRequest.model_fields)


@pytest.mark.parametrize("name", sorted(CHAT_WRONG))
def test_a_chats_wrong_field_is_named_with_its_value_and_limit(rig: Any, name: str) -> None:
    for value, param, what in CHAT_WRONG[name]:
        stream = {"stream": True} if name == "stream_options" and value != {} else {}
        check_named(rig.chat(**{name: value}, **stream), param, what)


@pytest.mark.parametrize("name", sorted(COMPLETION_WRONG))
def test_a_completions_wrong_field_is_named_with_its_value_and_limit(rig: Any, name: str) -> None:
    for value, param, what in COMPLETION_WRONG[name]:
        stream = {"stream": True} if name == "stream_options" and value != {} else {}
        check_named(rig.complete(**({"prompt": "x", name: value} | stream)), param, what)


def check_named(response: Any, param: str, what: str) -> None:
    error = error_of(response, 404 if "does not exist" in what else 400)
    assert error["param"] == param
    assert error["message"].startswith(f"{param}: ")
    assert what in error["message"]
    assert len(error["message"]) < 600


def test_of_two_limits_the_one_that_the_client_sent_is_named(rig: Any) -> None:
    for fields in ({"max_completion_tokens": 4096}, {"max_completion_tokens": 4096, "max_tokens": None}):
        assert error_of(rig.chat(**fields), 400)["param"] == "max_completion_tokens"
    assert error_of(rig.chat(max_tokens=4096, max_completion_tokens=None), 400)["param"] == "max_tokens"
    assert error_of(rig.complete(max_tokens=4096), 400)["param"] == "max_tokens"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud83d"}]}', "messages[0].content"),
        (b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "stop": ["a", "\\udc00"]}', "stop[1]"),
        (b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}', "temperature"),
        (b'{"model": "tiny", "messages": [{"role": "user", "content": "\xff"}]}', "messages[0].content"),
        (b'{"model": "tiny"', None),
    ],
)
def test_json_at_fault_names_its_field(rig: Any, body: bytes, param: str | None) -> None:
    error = error_of(rig.client.post("/v1/chat/completions", content=body), 400)
    assert (error["code"], error["param"]) == ("malformed_json", param)
    assert error["message"].startswith(param or "body")


@pytest.mark.parametrize(
    "prompt",
    [None, 5, "", [], [[]], [1, "a"], [1, -1], [1, 10**9], [1, True], [["a"]], ["a", [1.5]], {"a": 1}, ["a"] * 129],
)
def test_a_bad_prompt_is_named(rig: Any, prompt: Any) -> None:
    assert error_of(rig.complete(prompt), 400)["param"].startswith("prompt")


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "tool", "system"]) | json_values, "content": json_values},
        optional={
            "tool_calls": json_values,
            "name": json_values,
            "tool_call_id": json_values,
            "reasoning": json_values,
        },
    ),
    max_size=3,
)
keys = st.dictionaries(
    st.sampled_from(sorted(CONTENT | set(REPEATED_IN_MESSAGES))) | st.text(max_size=12), json_values, max_size=3
)
tools = st.lists(
    st.builds(
        lambda beside, inside: {"type": "function"} | beside | {"function": {"name": "f"} | inside},
        keys,
        st.dictionaries(
            st.sampled_from(["description", "parameters", "strict", "input_schema"]), json_values, max_size=2
        ),
    ),
    max_size=1,
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_value_of_any_field_is_a_500_and_the_error_names_one_that_was_sent(rig: Any, data: st.DataObject) -> None:
    kinds: list[tuple[type[BaseModel], str]] = [(ChatRequest, "chat/completions"), (CompletionRequest, "completions")]
    kind, path = data.draw(st.sampled_from(kinds))
    names = st.sampled_from(sorted(set(kind.model_fields) - {"timeout"}))
    body: dict[str, Any] = {"model": "tiny", "messages": CHAT["messages"], "prompt": "x"}
    body = {key: value for key, value in body.items() if key in kind.model_fields}
    body |= data.draw(st.dictionaries(names, json_values, max_size=3))
    if kind is ChatRequest and data.draw(st.booleans()):
        body["messages"] = [data.draw(keys) | message for message in data.draw(messages)]
        body["tools"] = data.draw(tools)
    response = rig.client.post(f"/v1/{path}", json=body)
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code != 200:
        error = error_of(response, response.status_code)
        field = re.split(r"[.\[]", error["param"])[0]
        assert field in body or error["code"] == "missing_required_parameter", error
