"""Whatever a client sends, it gets OpenAI's error shape and never a 500."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from expertfleet.gateway.schemas import ChatRequest, CompletionRequest

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
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"a": json.loads("[" * 80 + "]" * 80)}}}]},
         "messages"),
    ],
)  # fmt: skip
def test_a_bad_field_is_named(rig: Any, fields: dict[str, Any], param: str) -> None:
    assert error_of(rig.chat(**fields), 400)["param"] == param


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


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_value_of_any_field_is_a_500(rig: Any, data: st.DataObject) -> None:
    kinds: list[tuple[type[BaseModel], str]] = [(ChatRequest, "chat/completions"), (CompletionRequest, "completions")]
    kind, path = data.draw(st.sampled_from(kinds))
    names = st.sampled_from(sorted(set(kind.model_fields) - {"timeout"}))
    body: dict[str, Any] = {"model": "tiny", "messages": CHAT["messages"], "prompt": "x"}
    body = {key: value for key, value in body.items() if key in kind.model_fields}
    body |= data.draw(st.dictionaries(names, json_values, max_size=3))
    if kind is ChatRequest and data.draw(st.booleans()):
        body["messages"] = data.draw(messages)
    response = rig.client.post(f"/v1/{path}", json=body)
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code != 200:
        error_of(response, response.status_code)
