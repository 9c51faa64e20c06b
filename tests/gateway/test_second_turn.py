"""What an answer carried comes back in the next turn, as real clients send it: it is read, and the prompt is what it must be."""

from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel

CALLS = (
    "<think>hm</think><|tool_calls_section_begin|><|tool_call_begin|>functions.Weather:0<|tool_call_argument_begin|>"
    '{"city": "Rome"}<|tool_call_end|><|tool_calls_section_end|><|im_end|>'
)
QUESTION = {"role": "user", "content": "q"}
ANSWER = {
    "role": "assistant",
    "reasoning_content": "hm",
    "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "Weather", "arguments": '{"city": "Rome"}'}},
    ],
}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "21"}
TOOL = {"type": "function", "function": {"name": "Weather", "parameters": {"type": "object"}}}
CACHE = {"type": "ephemeral"}


class Weather(BaseModel):
    city: str


def prompt(rig: Any) -> list[int]:
    return list(rig.worker.requests[-1].prompt_ids)


def ask(rig: Any, *messages: Any, **fields: Any) -> tuple[list[int], list[str]]:
    """The prompt, and what the answer says was ignored."""
    response = rig.client.post("/v1/chat/completions", json={"model": rig.name, "messages": messages} | fields)
    assert response.status_code == 200, response.text
    return prompt(rig), [name for name in response.headers.get("x-expertfleet-ignored", "").split(", ") if name]


@pytest.fixture
def rig(rig: Any, scripts: Any) -> Any:
    rig.name = scripts.name
    return rig


@pytest.fixture
def seen() -> list[httpx.Response]:
    return []


@pytest.fixture
def client(rig: Any, seen: list[httpx.Response]) -> Any:
    http = httpx.Client(event_hooks={"response": [seen.append]})
    with openai.OpenAI(base_url=f"{rig.gateway.url}/v1", api_key="x", max_retries=0, http_client=http) as client:
        yield client


def turns(rig: Any, client: openai.OpenAI, how: str) -> tuple[Any, list[int]]:
    """The first answer as the client library holds it, and the prompt of a second turn made of plain messages."""
    rig.says(CALLS)
    asked: Any = {"model": rig.name, "messages": [QUESTION], "tools": [openai.pydantic_function_tool(Weather)]}
    if how == "stream":
        with client.chat.completions.stream(**asked) as stream:
            answer = stream.get_final_completion().choices[0].message
    else:
        answer = client.chat.completions.parse(**asked).choices[0].message
    assert answer.tool_calls
    arguments: Any = answer.tool_calls[0].function.parsed_arguments
    assert arguments == Weather(city="Rome")
    wanted, _ = ask(rig, QUESTION, ANSWER, RESULT, tools=asked["tools"])
    return answer, wanted


@pytest.mark.parametrize("how", ["parse", "stream"])
@pytest.mark.parametrize("form", ["object", "dump", "dump without nulls"])
def test_the_official_clients_own_answer_comes_back(
    rig: Any, client: openai.OpenAI, seen: list[httpx.Response], how: str, form: str
) -> None:
    answer, wanted = turns(rig, client, how)
    sent = answer if form == "object" else answer.model_dump(mode="json", exclude_none=form != "dump")
    result = {**RESULT, "tool_call_id": answer.tool_calls[0].id}
    tools: Any = [openai.pydantic_function_tool(Weather)]
    client.chat.completions.parse(model=rig.name, messages=[QUESTION, sent, result], tools=tools)
    assert prompt(rig) == wanted
    ignored = seen[-1].headers["x-expertfleet-ignored"]
    assert "messages.tool_calls.function.parsed_arguments" in ignored
    assert ("messages.tool_calls.index" in ignored) == (how == "stream")


@pytest.mark.parametrize(
    "extra",
    [
        {"refusal": ""}, {"annotations": []}, {"audio": {}}, {"function_call": ""}, {"reasoning_details": []},
        {"function_call": {"name": "", "arguments": ""}}, {"provider_specific_fields": {"refusal": None, "x": "y"}},
        {"annotations": [{"type": "url_citation", "url_citation": {"url": "u", "title": "t"}}]}, {"images": []},
        {"id": "msg_7", "timestamp": 1764547200.5}, {"createdAt": "2026-12-01T00:00:00Z", "model": "other"},
        {"usage": {"prompt_tokens": 3}, "finish_reason": "tool_calls"}, {"cache_control": CACHE}, {"status": "completed"},
        {"reasoning": "hm", "reasoning_details": [{"type": "reasoning.text", "text": "hm"}]},
        {"thinking_blocks": [{"type": "thinking", "thinking": "hm", "signature": "s"}]}, {"partial": False},
        {"context": {"intent": "[]", "citations": []}}, {"parts": [{"type": "text", "text": "", "state": "done"}]},
        {"reasoning": []}, {"token_ids": [1], "stop_reason": 2, "logprobs": {"content": []}}, {"tool_call_id": ""},
    ],
    ids=lambda extra: ", ".join(extra),
)  # fmt: skip
def test_keys_beside_an_answer_change_nothing_and_are_named(rig: Any, extra: dict[str, Any]) -> None:
    wanted, none = ask(rig, QUESTION, ANSWER, RESULT, tools=[TOOL])
    assert none == []
    found, ignored = ask(rig, QUESTION, ANSWER | extra, RESULT, tools=[TOOL])
    assert found == wanted
    assert ignored == sorted(f"messages.{name}" for name in extra if name != "reasoning")


@pytest.mark.parametrize(
    "extra",
    [{"status": "success"}, {"is_error": True}, {"artifact": {"rows": [1]}}, {"cache_control": CACHE}, {"id": "t"}],
    ids=lambda extra: ", ".join(extra),
)
def test_keys_beside_a_tools_result_change_nothing_and_are_named(rig: Any, extra: dict[str, Any]) -> None:
    wanted, _ = ask(rig, QUESTION, ANSWER, RESULT, tools=[TOOL])
    assert ask(rig, QUESTION, ANSWER, RESULT | extra, tools=[TOOL]) == (wanted, [f"messages.{name}" for name in extra])


@pytest.mark.parametrize(
    "extra",
    [
        {"cache_control": CACHE},
        {"prompt_cache_breakpoint": {"mode": "explicit"}},
        {"annotations": []},
        {"citations": [1]},
    ],
    ids=lambda extra: ", ".join(extra),
)
@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
def test_keys_beside_a_text_change_nothing_and_are_named(rig: Any, role: str, extra: dict[str, Any]) -> None:
    def messages(**more: Any) -> list[dict[str, Any]]:
        part = {"role": role, "content": [{"type": "text", "text": "t"} | more]}
        if role == "tool":
            return [QUESTION, ANSWER, {**part, "tool_call_id": "c1"}]
        return [part, QUESTION]

    wanted, _ = ask(rig, *messages())
    assert ask(rig, *messages(**extra)) == (wanted, [f"messages.content.{name}" for name in extra])


NO_ARGUMENTS: dict[str, dict[str, Any]] = {
    "null": {"arguments": None}, "absent": {}, "empty": {"arguments": ""}, "blank": {"arguments": " \n"},
    "an empty list": {"arguments": []}, "an empty object": {"arguments": {}}, "parsed": {"arguments": "", "parsed_arguments": {}},
}  # fmt: skip


@pytest.mark.parametrize("form", NO_ARGUMENTS)
def test_a_call_without_arguments_is_shown_as_one_with_an_empty_object(rig: Any, form: str) -> None:
    def messages(**arguments: Any) -> list[dict[str, Any]]:
        call = {"id": "c1", "type": "function", "function": {"name": "Weather"} | arguments}
        return [QUESTION, {"role": "assistant", "content": None, "tool_calls": [call]}, RESULT]

    wanted, _ = ask(rig, *messages(arguments="{}"), tools=[TOOL])
    assert ask(rig, *messages(**NO_ARGUMENTS[form]), tools=[TOOL])[0] == wanted


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant", "tool"])
def test_text_parts_have_three_names(rig: Any, role: str) -> None:
    def messages(kind: str) -> list[dict[str, Any]]:
        return [
            QUESTION,
            ANSWER,
            {"role": role, "content": [{"type": kind, "text": "t"}], "tool_call_id": "c1" * (role == "tool")},
        ]

    wanted, _ = ask(rig, *messages("text"))
    assert ask(rig, *messages("input_text"))[0] == ask(rig, *messages("output_text"))[0] == wanted


@pytest.mark.parametrize("calls", [None, [], {}, "", False])
def test_no_calls_are_no_calls_however_they_are_written(rig: Any, calls: Any) -> None:
    wanted, _ = ask(rig, QUESTION, {"role": "assistant", "content": "a"}, QUESTION)
    assert ask(rig, QUESTION, {"role": "assistant", "content": "a", "tool_calls": calls}, QUESTION) == (wanted, [])


@pytest.mark.parametrize("stream", [False, True])
def test_streams_and_completions_tell_what_they_ignore_too(rig: Any, stream: bool) -> None:
    keys = {"ключ\r\nx-injected: 1": 1, "metadata": {}}
    chat = {"messages": [QUESTION | keys], "user": "u"}
    response = rig.client.post("/v1/chat/completions", json={"model": rig.name, "stream": stream} | chat)
    assert response.status_code == 200
    assert "x-injected" not in response.headers
    user, first, second = response.headers["x-expertfleet-ignored"].split(", ")
    assert (user, first.startswith("messages.%D0%BA"), second) == ("user", True, "messages.metadata")
    response = rig.client.post(
        "/v1/completions", json={"model": rig.name, "stream": stream, "prompt": "p", "user": "u"}
    )
    assert (response.status_code, response.headers["x-expertfleet-ignored"]) == (200, "user")


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"content": "x"}, "messages[0].role"),
        ({"role": None, "content": "x"}, "messages[0].role"),
        ({"role": "tool", "content": "x"}, "messages[0].tool_call_id"),
        ({"role": "user", "content": [{"text": "x"}]}, "messages[0].content[0].type"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0].text"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}, "messages[0].tool_calls[0].id"),
        ({"role": "assistant", "tool_calls": [{"id": "c"}]}, "messages[0].tool_calls[0].function"),
        ({"role": "assistant", "tool_calls": [{"id": "c", "function": {}}]}, "messages[0].tool_calls[0].function.name"),
    ],
)
def test_what_is_absent_is_called_required(rig: Any, message: dict[str, Any], param: str) -> None:
    response = rig.client.post("/v1/chat/completions", json={"model": rig.name, "messages": [message]})
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, param, "missing_required_parameter")


TOOL_KEYS: dict[str, Any] = {
    "cache_control": CACHE, "cache_reference": "r", "strict": True, "annotations": {"readOnlyHint": True}, "title": "T",
    "metadata": {"a": 1}, "defer_loading": True, "eager_input_streaming": True, "allowed_callers": ["direct"],
    "input_examples": [{"city": "Rome"}], "outputSchema": {"type": "object"}, "_meta": {"x": 1}, "icons": [{"src": "i"}],
}  # fmt: skip


@pytest.mark.parametrize("name", TOOL_KEYS)
def test_hints_on_tools_change_nothing_and_are_named(rig: Any, name: str) -> None:
    wanted, _ = ask(rig, QUESTION, tools=[TOOL])
    hint = {name: TOOL_KEYS[name]}
    inside = TOOL | {"function": TOOL["function"] | hint}  # type: ignore[operator]
    assert ask(rig, QUESTION, tools=[TOOL | hint]) == (wanted, [f"tools.{name}"])
    assert ask(rig, QUESTION, tools=[inside]) == (wanted, [f"tools.function.{name}"])


def test_what_stands_in_a_tools_parameters_is_the_schemas_own(rig: Any) -> None:
    schema = {"type": "object", "properties": {"cache_control": {"type": "string", "strict": True}}, "metadata": 1}
    found, ignored = ask(rig, QUESTION, tools=[{"type": "function", "function": {"name": "f", "parameters": schema}}])
    assert ignored == []
    for word in ("cache_control", "strict", "metadata"):
        assert word in rig.text.text(found)


def test_a_cache_hint_for_the_whole_request_is_advisory(rig: Any) -> None:
    wanted, _ = ask(rig, QUESTION)
    assert ask(rig, QUESTION, cache_control=CACHE) == (wanted, ["cache_control"])


def test_names_are_part_of_the_prompt_and_an_empty_one_is_none(rig: Any) -> None:
    plain, _ = ask(rig, QUESTION)
    assert ask(rig, QUESTION | {"name": ""}) == (plain, [])
    assert ask(rig, QUESTION | {"name": "bob"})[0] != plain


def test_thousands_of_ignored_keys_are_told_in_a_line_that_fits(rig: Any) -> None:
    keys = {f"key{number}": 1 for number in range(5000)}
    response = rig.client.post("/v1/chat/completions", json={"model": rig.name, "messages": [QUESTION | keys]})
    line = response.headers["x-expertfleet-ignored"]
    assert len(line) < 2100
    assert line.startswith("messages.key0, messages.key1, ")
    listed, _, more = line.rpartition(", and ")
    assert len(listed.split(", ")) + int(more.removesuffix(" more")) == 5000


@pytest.mark.parametrize(
    ("message", "param"),
    [
        (QUESTION | {"images": ["aGk="]}, "messages[0].images"),
        (QUESTION | {"content": [{"type": "text", "text": "x", "image_url": {"url": "u"}}]}, "messages[0].content[0].image_url"),
        (QUESTION | {"content": [{"type": "image_url", "image_url": {"url": "u"}}]}, "messages[0].content[0].type"),
        (QUESTION | {"content": [{"type": "file", "file": {"file_id": "f"}}]}, "messages[0].content[0].type"),
        (QUESTION | {"experimental_attachments": [{"url": "u"}]}, "messages[0].experimental_attachments"),
        ({"role": "assistant", "content": None, "audio": {"id": "audio_1"}}, "messages[0].audio"),
        ({"role": "assistant", "content": "", "function_call": {"name": "f", "arguments": "{}"}}, "messages[0].function_call"),
        ({"role": "assistant", "content": None, "refusal": "I cannot"}, "messages[0].refusal"),
        (QUESTION | {"content": [{"type": "text", "content": "x"}]}, "messages[0].content[0].content"),
        (QUESTION | {"parts": [{"type": "text", "text": "another"}]}, "messages[0].parts"),
        ({"role": "assistant", "content": "a", "content_blocks": [{"type": "text", "text": "b"}]}, "messages[0].content_blocks"),
        ({"role": "assistant", "content": "a", "prefix": True}, "messages[0].prefix"),
        ({"role": "assistant", "content": "a", "reasoning_details": [{"text": "r"}]}, "messages[0].reasoning_details"),
        ({"role": "assistant", "content": "a", "reasoning": "r", "reasoning_content": "s"}, "messages[0].reasoning"),
    ],
)  # fmt: skip
def test_what_the_model_would_have_to_read_stays_refused(rig: Any, message: dict[str, Any], param: str) -> None:
    response = rig.client.post("/v1/chat/completions", json={"model": rig.name, "messages": [message]})
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
