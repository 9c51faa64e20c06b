"""Every known request field is honoured, advisory or refused, and exactly one of the three."""

from typing import Any

import pytest
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params

from expertfleet.gateway.http.errors import ApiError
from expertfleet.gateway.openai.fields import ADVISORY, REFUSED, split
from expertfleet.gateway.openai.schemas import ChatRequest, CompletionRequest, parse

CHAT = frozenset(ChatRequest.model_fields)
COMPLETION = frozenset(CompletionRequest.model_fields)
NEUTRAL: dict[str, list[Any]] = {
    "modalities": [["text"]],
    "response_format": [{"type": "text"}],
    "function_call": ["none"],
    "functions": [[]],
    "best_of": [1],
    "min_tokens": [0],
    "length_penalty": [1, 1.0],
    "echo": [False],
    "skip_special_tokens": [True],
    "chat_template_kwargs": [{}, {"thinking": True}],
    "thinking": [{"type": "enabled"}],
    "suffix": [""],
}
CHANGING: dict[str, Any] = {
    "modalities": ["text", "audio"],
    "response_format": {"type": "json_object"},
    "function_call": "auto",
    "functions": [{"name": "f"}],
    "best_of": 2,
    "echo": True,
    "min_tokens": 5,
    "skip_special_tokens": False,
    "chat_template_kwargs": {"thinking": False},
    "thinking": {"type": "disabled"},
    "guided_json": {},
    "structured_outputs": {"regex": "a"},
    "prompt_logprobs": 0,
    "use_beam_search": True,
    "add_generation_prompt": False,
    "bad_words": ["x"],
    "verbosity": "low",
    "audio": {"voice": "alloy"},
    "web_search_options": {},
    "include_reasoning": False,
}


def test_no_field_is_in_two_sets() -> None:
    assert not CHAT & set(ADVISORY)
    assert not CHAT & set(REFUSED)
    assert not set(ADVISORY) & set(REFUSED)
    assert not COMPLETION & set(ADVISORY)
    # A text of completions can show control tokens, a chat's cannot.
    assert COMPLETION & set(REFUSED) == {"skip_special_tokens"}


@pytest.mark.parametrize(
    ("openai_type", "honoured"),
    [
        (chat_create_params.CompletionCreateParamsBase, CHAT),
        (completion_create_params.CompletionCreateParamsBase, COMPLETION),
    ],
)
def test_every_field_of_openai_is_known(openai_type: type, honoured: frozenset[str]) -> None:
    known = honoured | set(ADVISORY) | set(REFUSED) | {"stream"}
    assert set(openai_type.__annotations__) <= known


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused_fields_pass_with_null_only_or_a_neutral_value(name: str) -> None:
    assert split({name: None}, CHAT) == ({}, [])
    for value in NEUTRAL.get(name, []):
        assert split({name: value}, CHAT) == ({}, [])
    with pytest.raises(ApiError, match=name) as caught:
        split({name: CHANGING.get(name, "anything")}, CHAT)
    assert (caught.value.status, caught.value.param) == (400, name)


def test_numbers_and_booleans_are_not_mixed_up() -> None:
    for field in ({"min_tokens": False}, {"echo": 0}, {"best_of": True}):
        with pytest.raises(ApiError):
            split(field, COMPLETION)


def test_unknown_field_is_named_with_its_likely_spelling() -> None:
    with pytest.raises(ApiError, match="did you mean 'temperature'") as caught:
        split({"temprature": 1}, CHAT)
    assert caught.value.code == "unknown_parameter"


def test_turning_reasoning_off_is_refused() -> None:
    with pytest.raises(ApiError, match="always reasons"):
        split({"reasoning_effort": "none"}, CHAT)


def test_obfuscation_of_streams_is_advisory() -> None:
    body = {
        "model": "m",
        "messages": [{}],
        "stream": True,
        "stream_options": {"include_obfuscation": True, "include_usage": True},
    }
    request, ignored = parse(ChatRequest, body)
    assert ignored == ["stream_options.include_obfuscation"]
    assert request.include_usage
