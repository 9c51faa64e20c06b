"""Types and limits of the honoured fields."""

from typing import Any

import pytest

from expertfleet.gateway.http.errors import ApiError
from expertfleet.gateway.openai.schemas import ChatRequest, CompletionRequest, parse

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1), ("temperature", 2.1), ("temperature", "1"), ("temperature", True),
        ("temperature", float("inf")), ("top_p", 0), ("top_p", 1.5), ("top_k", -2), ("top_k", 1.0), ("min_p", 1.1),
        ("presence_penalty", 3), ("frequency_penalty", -2.5), ("repetition_penalty", 0), ("n", 0), ("n", 9), ("n", "1"),
        ("seed", 1 << 64), ("seed", 1.5), ("stop", ""), ("stop", ["x"] * 17), ("stop", [1]), ("stop", "x" * 257),
        ("stop_token_ids", [-1]), ("stop_token_ids", ["a"]), ("max_tokens", 0), ("max_tokens", -5),
        ("max_tokens", 1 << 40), ("max_completion_tokens", 0), ("max_completion_tokens", "10"), ("logprobs", 1),
        ("top_logprobs", 3), ("stream", "yes"), ("stream_options", {}), ("logit_bias", {"a": 1}),
        ("logit_bias", {"5": 101}), ("logit_bias", [1]), ("priority", 256), ("priority", -1), ("cache_salt", ""),
        ("timeout", 0), ("timeout", -1), ("thinking_token_budget", -1), ("messages", []), ("messages", "hi"),
        ("messages", [1]), ("model", 5), ("model", ""), ("tools", {}), ("tools", [{}] * 129),
        ("parallel_tool_calls", "no"), ("request_id", "a\nb"),
    ],
)  # fmt: skip
def test_bad_values_name_the_field(field: str, value: Any) -> None:
    with pytest.raises(ApiError) as caught:
        parse(ChatRequest, CHAT | {field: value})
    assert caught.value.status == 400
    assert (caught.value.param or "").startswith(field)
    assert str(caught.value).startswith(field)


def test_a_message_has_value_and_limit() -> None:
    with pytest.raises(ApiError, match=r"temperature: .*less than or equal to 2 \(got 3\)"):
        parse(ChatRequest, CHAT | {"temperature": 3})


def test_nulls_are_absent() -> None:
    request, ignored = parse(ChatRequest, CHAT | dict.fromkeys(ChatRequest.model_fields.keys() - CHAT.keys()))
    assert request == parse(ChatRequest, CHAT)[0]
    assert ignored == []


@pytest.mark.parametrize("field", ["model", "messages"])
def test_required_fields(field: str) -> None:
    with pytest.raises(ApiError, match=f"{field}: this field is required"):
        parse(ChatRequest, {key: value for key, value in CHAT.items() if key != field})
    with pytest.raises(ApiError, match="prompt"):
        parse(CompletionRequest, {"model": "m"})


def test_contradicting_limits_are_refused_and_equal_ones_are_not() -> None:
    assert parse(ChatRequest, CHAT | {"max_tokens": 5, "max_completion_tokens": 5})[0].most_tokens == 5
    with pytest.raises(ApiError, match="max_completion_tokens: 6 contradicts max_tokens 5"):
        parse(ChatRequest, CHAT | {"max_tokens": 5, "max_completion_tokens": 6})


def test_a_single_stop_string_is_a_list_of_one() -> None:
    assert parse(ChatRequest, CHAT | {"stop": "x"})[0].stop == ["x"]
