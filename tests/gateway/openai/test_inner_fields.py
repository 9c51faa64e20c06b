"""Which keys of messages, parts, calls and tools are honoured, dropped by name, or refused."""

from typing import Any

import pytest

from expertfleet.gateway.http.errors import ApiError
from expertfleet.gateway.openai.inner_fields import (
    CALL,
    CALLED,
    CONTENT,
    FUNCTION,
    MESSAGES,
    PART,
    SWITCHES,
    TOOL,
    Kind,
    check_keys,
    says_nothing,
)

EVERY_KIND = [*MESSAGES.values(), PART, CALL, CALLED, FUNCTION, TOOL]


def dropped(kind: Kind, **keys: Any) -> set[str]:
    ignored: set[str] = set()
    check_keys(keys, kind, "here", ignored)
    return ignored


def refusal(kind: Kind, name: str, value: Any, **beside: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        check_keys({**beside, name: value}, kind, "here", set())
    assert (caught.value.status, caught.value.param) == (400, f"here.{name}")
    return caught.value


@pytest.mark.parametrize("kind", EVERY_KIND, ids=lambda kind: kind.name)
def test_keys_that_nobody_reads_are_dropped_by_name(kind: Kind) -> None:
    keys = {
        "cache_control": {"type": "ephemeral"}, "id": "msg_1", "timestamp": 1764547200, "createdAt": "2026-12-01",
        "metadata": {"a": 1}, "annotations": [{"type": "url_citation"}], "provider_specific_fields": {"x": "y"},
        "extra_content": {"google": {"thought_signature": "s"}}, "content_type": "x", "_type": "message", "weight": 0.5,
    }  # fmt: skip
    keys = {name: value for name, value in keys.items() if name not in kind.honoured}
    assert dropped(kind, **keys) == {f"{kind.name}.{name}" for name in keys}


@pytest.mark.parametrize("kind", EVERY_KIND, ids=lambda kind: kind.name)
def test_honoured_keys_and_nulls_are_not_named(kind: Kind) -> None:
    assert dropped(kind, **dict.fromkeys(kind.honoured, "x"), cache_control=None, function_call=None) == set()


@pytest.mark.parametrize("kind", EVERY_KIND, ids=lambda kind: kind.name)
def test_what_a_refused_key_leaves_empty_changes_nothing(kind: Kind) -> None:
    for name in kind.refused:
        for empty in ("", [], {}, False, {"name": "", "arguments": ""}):
            assert dropped(kind, **{name: empty}) == {f"{kind.name}.{name}"}
        assert refusal(kind, name, {"x": "y"}).code == "unsupported_value"


@pytest.mark.parametrize(
    "name", ["images", "image_url", "input_audio", "inlineVideo", "experimental_attachments", "file-ids"]
)
def test_media_are_refused_by_a_word_of_their_name(name: str) -> None:
    for kind in (*MESSAGES.values(), PART, CALL, CALLED):
        refusal(kind, name, [{"url": "data:x"}])
        assert dropped(kind, **{name: []})
        assert dropped(kind, **{name: 3})


@pytest.mark.parametrize("name", sorted(CONTENT | SWITCHES))
def test_other_content_and_switches_are_refused_in_messages(name: str) -> None:
    for kind in MESSAGES.values():
        refusal(kind, name, True if name in SWITCHES else "text")


def test_a_key_of_another_role_is_refused() -> None:
    refusal(MESSAGES["user"], "tool_calls", [{"id": "1"}])
    refusal(MESSAGES["assistant"], "tool_call_id", "1")
    refusal(MESSAGES["tool"], "reasoning_content", "hm")
    assert dropped(MESSAGES["system"], tool_calls=[], tool_call_id="")


@pytest.mark.parametrize(
    ("kind", "name", "meant"),
    [
        (MESSAGES["user"], "contnet", "content"),
        (MESSAGES["user"], "contents", "content"),
        (MESSAGES["user"], "conten", "content"),
        (MESSAGES["assistant"], "tool_call", "tool_calls"),
        (MESSAGES["assistant"], "toolCalls", "tool_calls"),
        (MESSAGES["assistant"], "reasoningContent", "reasoning_content"),
        (MESSAGES["tool"], "toolCallId", "tool_call_id"),
        (PART, "texts", "text"),
        (CALLED, "argumnets", "arguments"),
        (FUNCTION, "paramters", "parameters"),
        (FUNCTION, "Description", "description"),
        (TOOL, "functions", "function"),
    ],
)
def test_another_spelling_of_an_honoured_key_is_refused(kind: Kind, name: str, meant: str) -> None:
    error = refusal(kind, name, "something")
    assert error.code == "unknown_parameter"
    assert repr(meant) in str(error)
    assert dropped(kind, **{name: ""}) == {f"{kind.name}.{name}"}


@pytest.mark.parametrize(
    "name",
    [
        "context",
        "next",
        "test",
        "idx",
        "uid",
        "tool_call_index",
        "typeName",
        "note",
        "date",
        "mode",
        "reasoning_tokens",
    ],
)
def test_names_that_are_only_alike_are_dropped(name: str) -> None:
    for kind in EVERY_KIND:
        assert dropped(kind, **{name: "x"}) == {f"{kind.name}.{name}"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("reasoning_details", [{"type": "reasoning.text", "text": "hm", "index": 0}]),
        ("reasoning_details", [{"type": "reasoning.summary", "summary": "hm"}]),
        ("thinking_blocks", [{"type": "thinking", "thinking": "hm", "signature": "s"}]),
        ("reasoning_items", [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}]),
        ("reasoning_text", "hm"),
        ("thinking", "hm"),
        ("think", "hm"),
        ("thoughts", ["hm"]),
        ("tool_plan", "hm"),
    ],
)
def test_reasoning_in_other_forms_repeats_reasoning_content(name: str, value: Any) -> None:
    kind = MESSAGES["assistant"]
    assert dropped(kind, reasoning_content="hm", **{name: value}) == {f"messages.{name}"}
    assert "reasoning_content" in str(refusal(kind, name, value))
    refusal(kind, name, value, reasoning_content="")


def test_reasoning_that_no_model_but_its_makers_can_read_is_dropped() -> None:
    blocks = [
        {"type": "reasoning.encrypted", "data": "gAAAA", "format": "x"},
        {"type": "redacted_thinking", "data": "x"},
    ]
    for name in ("reasoning_details", "thinking_blocks"):
        assert dropped(MESSAGES["assistant"], **{name: blocks}) == {f"messages.{name}"}


def test_parsed_content_repeats_content() -> None:
    assert dropped(MESSAGES["assistant"], content='{"a": 1}', parsed={"a": 1}) == {"messages.parsed"}
    refusal(MESSAGES["assistant"], "parsed", {"a": 1}, content=None)


def test_another_schema_repeats_parameters() -> None:
    schema = {"type": "object"}
    for name in ("input_schema", "inputSchema", "parametersJsonSchema", "arguments"):
        assert dropped(FUNCTION, parameters=schema, **{name: schema}) == {f"tools.function.{name}"}
        assert "parameters" in str(refusal(FUNCTION, name, schema))


def test_a_tools_own_keys_repeat_its_functions() -> None:
    ignored: set[str] = set()
    function = {"name": "f", "description": "d", "parameters": {"type": "object"}}
    check_keys({"type": "function", "function": {}, **function}, TOOL, "tools[0]", ignored, function)
    assert ignored == {"tools.name", "tools.description", "tools.parameters"}
    with pytest.raises(ApiError, match=r"tools\[0\]\.description"):
        check_keys({"description": "d"}, TOOL, "tools[0]", set(), {"name": "f"})


def test_a_name_that_no_header_can_hold_is_written_in_one_that_can() -> None:
    ignored = dropped(MESSAGES["user"], **{"ключ, \r\n": 1, "x" * 500: 2})
    assert all(name.isascii() and name.isprintable() and not set(name) & set(", \r\n") for name in ignored)
    assert max(map(len, ignored)) <= 100


def test_zero_says_something_and_an_object_of_nothing_does_not() -> None:
    assert not any(map(says_nothing, (0, 0.0, True, " ", [""], [{}], {"a": 0})))
    assert all(map(says_nothing, (None, False, "", [], {}, {"a": None, "b": {"c": ""}})))


@pytest.mark.parametrize("kind", MESSAGES.values(), ids=lambda kind: f"{kind.name}-{max(kind.honoured)}")
def test_content_that_has_the_words_of_content_is_dropped(kind: Kind) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "output_text", "text": "b", "annotations": []}]
    for name, value in {
        "text": "ab",
        "parts": parts,
        "output": [*parts[:1], {"text": "b"}],
        "contentBlocks": parts,
    }.items():
        for content in ("ab", [{"type": "text", "text": "ab"}], parts):
            assert dropped(kind, content=content, **{name: value}) == {f"{kind.name}.{name}"}
        refusal(kind, name, value, content="b")
        refusal(kind, name, value)
    refusal(kind, "parts", [*parts, {"type": "tool-invocation", "text": ""}], content="ab")
    refusal(kind, "parts", [*parts, {"type": "text", "text": "", "image": {"url": "u"}}], content="ab")
    assert dropped(kind, content=None, parts=[{"type": "text", "text": ""}]) == {f"{kind.name}.parts"}


@pytest.mark.parametrize("name", ["args", "input", "parameters", "parsed_arguments", "parsedArguments"])
def test_arguments_under_another_name_repeat_arguments(name: str) -> None:
    for value in ({"a": 1}, '{"a": 1}'):
        assert dropped(CALLED, arguments="{}", **{name: value}) == {f"{CALLED.name}.{name}"}
        assert "give it as arguments" in str(refusal(CALLED, name, value))
        refusal(CALLED, name, value, arguments="")


def test_a_parts_words_under_another_name_repeat_its_text() -> None:
    for name in ("content", "value"):
        assert dropped(PART, type="text", text="a", **{name: "a"}) == {f"{PART.name}.{name}"}
        assert "give it as text" in str(refusal(PART, name, "a", type="text", text=""))


def test_a_calls_own_keys_repeat_its_functions() -> None:
    ignored: set[str] = set()
    check_keys({"name": "f", "arguments": "{}"}, CALL, "call", ignored, {"name": "f", "arguments": "{}"})
    assert ignored == {"messages.tool_calls.name", "messages.tool_calls.arguments"}
    with pytest.raises(ApiError, match=r"call\.arguments"):
        check_keys({"arguments": '{"a": 1}'}, CALL, "call", set(), {"name": "f", "arguments": None})
