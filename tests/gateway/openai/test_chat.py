"""Chats whose template opens the thinking itself, so that the model's first token is a thought."""

import json
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from expertfleet.attention_workers.service import make_sequence
from expertfleet.proto.errors import Code
from expertfleet.proto.generated import generate_pb2 as pb

OPENED = "<think>\n"
ANSWER = "Let me STOP and see</think>It is STOP, 3 °C.<|im_end|>"
CALL = (
    "They ask for Oslo</think>I look.<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0"
    '<|tool_call_argument_begin|>{"a": 1}<|tool_call_end|><|tool_calls_section_end|><|im_end|>'
)
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {}}}}}


def opening(model_dir: Path, directory: Path, opened: str = OPENED) -> Path:
    """The model with a template that ends its prompts inside thinking."""
    model = Path(shutil.copytree(model_dir, directory / "opening"))
    template = model / "chat_template.jinja"
    prompt = "<|im_assistant|>assistant<|im_middle|>\n{%- endif -%}"
    assert template.read_text().count(prompt) == 1
    # Written as an expression: behind a tag that trims, white space of the template's text would go.
    begun = f"<|im_assistant|>assistant<|im_middle|>{{{{ {json.dumps(opened)} }}}}\n{{%- endif -%}}"
    template.write_text(template.read_text().replace(prompt, begun))
    return model


@pytest.fixture(scope="module")
def shared(model_dir: Path, tmp_path_factory: pytest.TempPathFactory, scripts: Any) -> Iterator[Any]:
    rig = scripts.Rig(opening(model_dir, tmp_path_factory.mktemp("model")), num_workers=2)
    yield rig
    rig.close()


@pytest.fixture
def thinker(shared: Any) -> Any:
    shared.reset()
    return shared


def requests(rig: Any) -> list[pb.GenerateRequest]:
    return [request for worker in rig.workers for request in worker.requests]


def told(rig: Any, *, stream: bool, **fields: Any) -> dict[str, Any]:
    """Reasoning, content, arguments, why it ended and the number of reasoning tokens, of a whole or a streamed answer."""
    if not stream:
        body = rig.chat(**fields).json()
        choice, usage = body["choices"][0], body["usage"]
        parts, reason = [choice["message"]], choice["finish_reason"]
    else:
        response = rig.chat(stream=True, stream_options={"include_usage": True}, **fields)
        frames = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
        choices = [choice for frame in frames for choice in frame["choices"]]
        parts, usage = [choice["delta"] for choice in choices], frames[-1]["usage"]
        reason = next(choice["finish_reason"] for choice in choices if choice.get("finish_reason"))
    calls = [call["function"]["arguments"] for part in parts for call in part.get("tool_calls") or []]
    return {
        "reasoning": "".join(part.get("reasoning_content") or "" for part in parts),
        "content": "".join(part.get("content") or "" for part in parts),
        "arguments": "".join(calls),
        "reason": reason,
        "num_reasoning": usage["completion_tokens_details"]["reasoning_tokens"],
    }


def expected(rig: Any, text: str, num_tokens: int) -> dict[str, Any]:
    """What the first tokens of ``text`` say when they begin inside thinking."""
    ids = rig.text.ids(text)[:num_tokens]
    thought, ended, said = rig.text._tokenizer.decode_bytes(ids).decode(errors="replace").partition("</think>")
    end = rig.text.ids("</think>")[0]
    return {
        "reasoning": thought,
        "content": said.removesuffix("<|im_end|>"),
        "arguments": "",
        "reason": "stop" if said.endswith("<|im_end|>") else "length",
        "num_reasoning": ids.index(end) if ended else len(ids),
    }


@pytest.mark.parametrize("stream", [False, True])
def test_thinking_that_the_template_opened_is_reasoning(thinker: Any, stream: bool) -> None:
    thinker.says(ANSWER)
    assert told(thinker, stream=stream) == {
        "reasoning": "Let me STOP and see",
        "content": "It is STOP, 3 °C.",
        "arguments": "",
        "reason": "stop",
        "num_reasoning": len(thinker.text.ids("Let me STOP and see")),
    }
    prompt = thinker.text.text(requests(thinker)[0].prompt_ids)
    assert prompt.endswith("<|im_assistant|>assistant<|im_middle|><think>\n")


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_is_cut_anywhere_is_told_apart(thinker: Any, stream: bool) -> None:
    thinker.says(ANSWER, step=3)
    for num_tokens in range(1, 41):
        assert told(thinker, stream=stream, max_tokens=num_tokens) == expected(thinker, ANSWER, num_tokens)


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_follows_thinking_that_the_template_opened(thinker: Any, stream: bool) -> None:
    thinker.says(CALL)
    assert told(thinker, stream=stream, tools=[TOOL]) == {
        "reasoning": "They ask for Oslo",
        "content": "I look.",
        "arguments": '{"a": 1}',
        "reason": "tool_calls",
        "num_reasoning": len(thinker.text.ids("They ask for Oslo")),
    }


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_in_opened_thinking_ends_nothing(thinker: Any, stream: bool) -> None:
    thinker.says(ANSWER)
    answer = told(thinker, stream=stream, stop=["STOP"])
    assert (answer["reasoning"], answer["content"]) == ("Let me STOP and see", "It is ")


def obedient(ids: list[int], end: int) -> Any:
    """Says these ids as an attention worker does that keeps to the thinking budget; thoughts that are cut are left out."""

    async def script(request: pb.GenerateRequest) -> AsyncIterator[pb.GenerateReply]:
        sequence = make_sequence(request, lambda update: None)
        while True:
            forced = sequence.forced_token()
            said = sequence.tokens[sequence.num_prompt :]
            if forced is not None or end not in said:
                token = forced if forced is not None else ids[len(said)]
            else:
                token = ids[ids.index(end) + len(said) - said.index(end)]
            reason = sequence.append(token)
            yield pb.GenerateReply(token_ids=[token], finish_reason=reason)
            if reason:
                return

    return script


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("opened", ["<think>", "<think>\n", "<think>Well,"])
@pytest.mark.parametrize("budget", [0, 1, 5, 1000])
def test_a_budget_counts_the_tokens_of_opened_thinking(
    model_dir: Path, tmp_path: Path, scripts: Any, budget: int, opened: str, stream: bool
) -> None:
    rig = scripts.Rig(opening(model_dir, tmp_path, opened))
    try:
        ids, end = rig.text.ids(ANSWER), rig.text.ids("</think>")[0]
        rig.worker.script = obedient(ids, end)
        answer = told(rig, stream=stream, thinking_token_budget=budget)
        thought = ids[: min(budget, ids.index(end))]
        assert answer["num_reasoning"] == len(thought)
        assert answer["reasoning"] == rig.text.text(thought)
        assert answer["content"] == "It is STOP, 3 °C."
    finally:
        rig.close()


def test_every_answer_of_several_begins_inside_the_thinking(thinker: Any) -> None:
    thinker.says(ANSWER)
    body = thinker.chat(n=3).json()
    assert [choice["message"]["reasoning_content"] for choice in body["choices"]] == ["Let me STOP and see"] * 3
    assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] == 3 * len(
        thinker.text.ids("Let me STOP and see")
    )


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("num_before", [1, 3, 12])
def test_an_answer_that_goes_on_elsewhere_is_told_apart_as_before(
    thinker: Any, scripts: Any, num_before: int, stream: bool
) -> None:
    ids, end = thinker.text.ids(ANSWER), thinker.text.ids("</think>")[0]
    thinker.says(ANSWER)
    whole = told(thinker, stream=stream, thinking_token_budget=5)
    for worker in thinker.workers:
        worker.requests.clear()
    cut = ids[:5] + ids[ids.index(end) :]
    dying = scripts.fail(Code.LANE_LOST, after=cut[:num_before])
    going_on = obedient(ids, end)

    def script(request: pb.GenerateRequest) -> Any:
        return going_on(request) if request.generated_ids else dying(request)

    for worker in thinker.workers:
        worker.script = script
    answer = told(thinker, stream=stream, thinking_token_budget=5)
    resumed = [request for request in requests(thinker) if request.generated_ids]
    assert [list(request.generated_ids)[:num_before] for request in resumed] == [cut[:num_before]]
    assert resumed[0].thinking_budget.begun
    assert answer["num_reasoning"] == 5
    assert answer["reasoning"] == thinker.text.text(ids[:5])
    assert answer["content"] == whole["content"]


def test_a_template_that_closes_the_thinking_gets_content(model_dir: Path, tmp_path: Path, scripts: Any) -> None:
    rig = scripts.Rig(opening(model_dir, tmp_path, "<think></think>"))
    try:
        rig.says("Hello.<|im_end|>")
        answer = told(rig, stream=False, thinking_token_budget=0)
        assert (answer["reasoning"], answer["content"], answer["num_reasoning"]) == ("", "Hello.", 0)
        assert not rig.worker.requests[0].thinking_budget.begun
    finally:
        rig.close()


def test_thinking_of_earlier_turns_opens_nothing(rig: Any) -> None:
    rig.says("Hello.<|im_end|>")
    call = {"id": "functions.f:0", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "<think>"},
        {"role": "assistant", "reasoning_content": "hm <think>", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "functions.f:0", "content": "3"},
    ]
    answer = told(rig, stream=False, messages=messages, thinking_token_budget=2)
    assert (answer["reasoning"], answer["content"]) == ("", "Hello.")
    assert not rig.worker.requests[0].thinking_budget.begun


def test_a_completions_budget_begins_as_its_prompt_ends(rig: Any) -> None:
    rig.says("b</think>c<|im_end|>")
    begun = []
    for prompt in ("a<think>", rig.text.ids("a<think>b"), rig.text.ids("<think>a</think>b")):
        body = rig.complete(prompt, thinking_token_budget=3).json()
        assert body["choices"][0]["text"] == "b</think>c"
        begun.append(rig.worker.requests[-1].thinking_budget.begun)
    assert begun == [False, True, False]


@pytest.mark.parametrize(
    "files",
    [
        {"generation_config.json": {"eos_token_id": None}, "tokenizer_config.json": {"eos_token": None}},
        {"generation_config.json": {"eos_token_id": 1793}, "tokenizer_config.json": {"eos_token": "[EOS]"}},
        {"generation_config.json": {"eos_token_id": [1793, 1801]}, "tokenizer_config.json": {"eos_token": "[EOS]"}},
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_ends_where_the_template_ends_a_turn_whatever_the_files_name(
    model_dir: Path, tmp_path: Path, scripts: Any, files: dict[str, Any], stream: bool
) -> None:
    model = Path(shutil.copytree(model_dir, tmp_path / "model"))
    for name, value in {**files, "config.json": {"eos_token_id": None}}.items():
        (model / name).write_text(json.dumps({**json.loads((model / name).read_text()), **value}))
    rig = scripts.Rig(model)
    try:
        assert rig.text.ids("[EOS][EOT]") == [1793, 1801]
        rig.says("<think>a</think>b<|im_end|><think>a</think>b<|im_end|>", finish="length")
        answer = told(rig, stream=stream)
        assert (answer["reasoning"], answer["content"], answer["reason"]) == ("a", "b", "stop")
        ignoring = told(rig, stream=stream, ignore_eos=True)
        assert (ignoring["content"], ignoring["reason"]) == ("bb", "length")
        assert not rig.worker.requests[-1].stop_token_ids
        rig.complete("a")
        assert sorted(rig.worker.requests[-1].stop_token_ids) == [1793, 1801]
    finally:
        rig.close()
