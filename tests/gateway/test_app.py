"""The API over real HTTP, with httpx and with OpenAI's own client."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

CALL = "<|tool_call_begin|>{0}<|tool_call_argument_begin|>{1}<|tool_call_end|>"
SECTION = "<|tool_calls_section_begin|>{0}<|tool_calls_section_end|>"
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


@pytest.fixture
def client(rig: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{rig.gateway.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def frames(response: Any) -> list[dict[str, Any]]:
    lines = [line[6:] for line in response.text.split("\n\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_a_chat_is_answered_with_reasoning_content_and_usage(rig: Any) -> None:
    rig.says("<think>let me see</think>the answer<|im_end|>")
    response = rig.chat()
    assert response.status_code == 200
    body = response.json()
    assert body["choices"] == [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "the answer",
                "reasoning_content": "let me see",
                "refusal": None,
                "tool_calls": None,
            },
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    usage = body["usage"]
    assert usage["prompt_tokens"] == len(rig.worker.requests[0].prompt_ids)
    assert usage["completion_tokens"] == len(rig.text.ids("<think>let me see</think>the answer<|im_end|>"))
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 3}
    assert usage["completion_tokens_details"] == {"reasoning_tokens": len(rig.text.ids("let me see"))}
    assert body["object"] == "chat.completion"
    assert body["model"] == "moonshotai/Kimi-K2-Thinking"


def test_a_streamed_chat_says_the_same_as_a_whole_one(rig: Any) -> None:
    call = SECTION.format(CALL.format("functions.get_weather:0", '{"city": "Oslo"}'))
    rig.says(f"<think>hm – 🙂</think>Look:{call}<|im_end|>")
    fields: dict[str, Any] = {"tools": [TOOL], "return_token_ids": True, "logprobs": True, "top_logprobs": 2, "seed": 1}
    whole = rig.chat(**fields).json()
    chunks = frames(rig.chat(**fields, stream=True, stream_options={"include_usage": True}))
    message: dict[str, str] = {"content": "", "reasoning_content": "", "arguments": ""}
    calls, token_ids, logprobs, reasons = [], [], [], []
    for chunk in chunks[:-1]:
        (choice,) = chunk["choices"]
        for key in ("content", "reasoning_content"):
            message[key] += choice["delta"].get(key, "")
        for delta in choice["delta"].get("tool_calls", []):
            message["arguments"] += delta["function"]["arguments"]
            calls += [(delta["id"], delta["function"]["name"])] if "id" in delta else []
        token_ids += choice.get("token_ids", [])
        logprobs += (choice["logprobs"] or {"content": []})["content"]
        reasons += [choice["finish_reason"]] if choice["finish_reason"] else []
    (choice,) = whole["choices"]
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert message["content"] == choice["message"]["content"] == "Look:"
    assert message["reasoning_content"] == choice["message"]["reasoning_content"] == "hm – 🙂"
    (expected,) = choice["message"]["tool_calls"]
    assert calls == [(expected["id"], expected["function"]["name"])] == [("functions.get_weather:0", "get_weather")]
    assert message["arguments"] == expected["function"]["arguments"] == '{"city": "Oslo"}'
    assert token_ids == choice["token_ids"] == rig.text.ids(f"<think>hm – 🙂</think>Look:{call}<|im_end|>")
    assert logprobs == choice["logprobs"]["content"]
    assert reasons == [choice["finish_reason"]] == ["tool_calls"]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == whole["usage"]
    assert chunks[0]["prompt_token_ids"] == whole["prompt_token_ids"] == list(rig.worker.requests[0].prompt_ids)


def test_continuous_usage_counts_up(rig: Any) -> None:
    rig.says("one two three four<|im_end|>", wait_s=0.02)
    options = {"include_usage": True, "continuous_usage_stats": True}
    counts = [chunk["usage"]["completion_tokens"] for chunk in frames(rig.chat(stream=True, stream_options=options))]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1] == len(rig.text.ids("one two three four<|im_end|>"))


def test_openai_client_streams_and_reads_usage(rig: Any, client: openai.OpenAI) -> None:
    rig.says("<think>a</think>b c<|im_end|>")
    stream = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "x"}], stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "b c"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens_details is not None
    assert chunks[-1].usage.completion_tokens_details.reasoning_tokens == 1


def test_n_answers_have_their_own_seeds_and_the_first_has_the_clients(rig: Any) -> None:
    body = rig.chat(n=3, seed=7).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    seeds = {request.sampling.seed for request in rig.worker.requests}
    assert len(seeds) == 3
    assert 7 in seeds
    assert body["usage"]["prompt_tokens"] == len(rig.worker.requests[0].prompt_ids)


def test_a_seed_is_drawn_when_none_is_given(rig: Any) -> None:
    rig.chat()
    rig.chat()
    first, second = rig.worker.requests
    assert first.sampling.seed != second.sampling.seed


def test_stop_string_across_tokens_ends_the_answer_and_cancels_the_worker(rig: Any, scripts: Any) -> None:
    rig.worker.script = scripts.say(rig.text.ids("alpha beta STOP gamma" + " more" * 5000), wait_s=0.002)
    body = rig.chat(stop=["ta ST"]).json()
    assert body["choices"][0]["message"]["content"] == "alpha be"
    assert body["choices"][0]["finish_reason"] == "stop"
    scripts.until(lambda: rig.worker.num_cancelled == 1, 5.0)
    assert rig.worker.num_running == 0


def test_stop_string_can_be_kept(rig: Any) -> None:
    rig.says("alpha beta gamma<|im_end|>")
    body = rig.complete(stop="beta", include_stop_str_in_output=True).json()
    assert body["choices"][0]["text"] == "alpha beta"


def test_max_tokens_ends_with_length(rig: Any) -> None:
    rig.says("one two three four five<|im_end|>")
    body = rig.chat(max_completion_tokens=2).json()
    assert rig.worker.requests[0].max_tokens == 2
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 2


def test_without_a_limit_the_rest_of_the_context_is_allowed(rig: Any) -> None:
    rig.chat()
    request = rig.worker.requests[0]
    assert request.max_tokens == 4096 - len(request.prompt_ids)


def test_prompt_and_limit_beyond_the_context_are_refused_with_numbers(rig: Any) -> None:
    response = rig.chat(max_tokens=4096)
    error = response.json()["error"]
    assert response.status_code == 400
    assert error["code"] == "context_length_exceeded"
    assert "4096" in error["message"]
    response = rig.complete([1] * 4096)
    assert response.json()["error"]["param"] == "prompt"
    assert response.json()["error"]["code"] == "context_length_exceeded"


def test_one_call_only_when_parallel_calls_are_off(rig: Any) -> None:
    calls = [CALL.format(f"functions.get_weather:{i}", "{}") for i in range(3)]
    rig.says(SECTION.format("".join(calls)) + "<|im_end|>")
    choice = rig.chat(tools=[TOOL], parallel_tool_calls=False).json()["choices"][0]
    assert len(choice["message"]["tool_calls"]) == 1
    assert choice["finish_reason"] == "tool_calls"
    assert len(rig.chat(tools=[TOOL]).json()["choices"][0]["message"]["tool_calls"]) == 3


def test_tool_choice_none_forbids_the_markers_and_makes_a_call_content(rig: Any) -> None:
    rig.says("text" + SECTION.format(CALL.format("functions.get_weather:0", "{}")) + "<|im_end|>")
    choice = rig.chat(tools=[TOOL], tool_choice="none").json()["choices"][0]
    assert choice["message"]["tool_calls"] is None
    assert choice["message"]["content"] == "textfunctions.get_weather:0{}"
    assert choice["finish_reason"] == "stop"
    special = rig.gateway.service.model.tokenizer.special
    assert rig.worker.requests[0].sampling.logit_bias[special["<|tool_calls_section_begin|>"]] == -100


def test_ids_go_on_from_the_history(rig: Any) -> None:
    rig.says(SECTION.format(CALL.format("functions.get_weather:0", "{}")) + "<|im_end|>")
    calls = [{"id": f"call_{i}", "type": "function", "function": {"name": "f", "arguments": "{}"}} for i in range(2)]
    messages = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        *({"role": "tool", "tool_call_id": call["id"], "content": "1"} for call in calls),
    ]
    body = rig.chat(messages=messages, tools=[TOOL], n=2).json()
    ids = [choice["message"]["tool_calls"][0]["id"] for choice in body["choices"]]
    assert ids == ["functions.get_weather:2"] * 2


def test_ids_are_new_to_a_history_that_was_cut_and_the_prompt_keeps_its_beginning(rig: Any) -> None:
    rig.says(SECTION.format(CALL.format("functions.get_weather:1", "{}")) + "<|im_end|>")
    messages: list[dict[str, Any]] = [{"role": "user", "content": "x"}]
    made = ["functions.get_weather:6"]
    for turn in range(3):
        call = {"id": made[-1], "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
        messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        messages.append({"role": "tool", "tool_call_id": made[-1], "content": str(turn)})
        body = rig.chat(messages=messages, tools=[TOOL], n=2).json()
        ids = {choice["message"]["tool_calls"][0]["id"] for choice in body["choices"]}
        assert ids == {f"functions.get_weather:{7 + turn}"}
        made += ids
    first, *_, last = (list(request.prompt_ids) for request in rig.worker.requests)
    assert last[: len(first)] == first
    assert "functions.get_weather:2" in rig.text.text(last)


OTHER_TOOL = {"type": "function", "function": {"name": "get_time", "parameters": TOOL["function"]["parameters"]}}  # type: ignore[index]


def test_a_call_that_names_no_tool_is_told_counted_and_logged_without_its_text(
    rig: Any, client: openai.OpenAI, caplog: pytest.LogCaptureFixture
) -> None:
    rig.says("Well." + SECTION.format(CALL.format("call_1", '{"secret": 1}')) + "<|im_end|>")
    fields: dict[str, Any] = {
        "model": "tiny", "messages": [{"role": "user", "content": "x"}], "tools": [TOOL, OTHER_TOOL], "n": 2
    }  # fmt: skip
    counter = 'expertfleet_invalid_tool_calls_total{model_name="tiny"} '

    def counted() -> float:
        lines = [line for line in rig.admin.get("/metrics").text.splitlines() if line.startswith(counter)]
        return float(lines[0].removeprefix(counter)) if lines else 0.0

    before = counted()
    for choice in client.chat.completions.create(**fields).choices:
        assert choice.message.content == 'Well.call_1{"secret": 1}'
        assert choice.message.tool_calls is None
        assert choice.finish_reason == "invalid_tool_call"
    assert counted() == before + 2
    chunks = [chunk.choices[0] for chunk in client.chat.completions.create(stream=True, **fields)]
    assert "".join(chunk.delta.content or "" for chunk in chunks if chunk.index == 0) == 'Well.call_1{"secret": 1}'
    assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == ["invalid_tool_call"] * 2
    assert counted() == before + 4
    logged = [
        record.getMessage() for record in caplog.records if record.name == "expertfleet.gateway.engine.running_request"
    ]
    assert len(logged) == 2
    assert all(message.endswith("tool calls that name no tool became content: 2") for message in logged)
    assert "secret" not in caplog.text


def test_an_odd_header_names_its_tool_whole_and_streamed(rig: Any) -> None:
    for header in ("functionsget_weather5", "functions.get_weather:call_1", "get_weather", "functions.Get_Weather:0"):
        rig.says(SECTION.format(CALL.format(header, '{"city": "Oslo"}')) + "<|im_end|>")
        whole = rig.chat(tools=[TOOL, OTHER_TOOL]).json()["choices"][0]
        (made,) = whole["message"]["tool_calls"]
        assert made["function"] == {"name": "get_weather", "arguments": '{"city": "Oslo"}'}
        streamed = [chunk["choices"][0] for chunk in frames(rig.chat(tools=[TOOL, OTHER_TOOL], stream=True))]
        deltas = [delta for choice in streamed for delta in choice["delta"].get("tool_calls", [])]
        assert (deltas[0]["id"], deltas[0]["function"]["name"]) == (made["id"], "get_weather")
        assert "".join(delta["function"]["arguments"] for delta in deltas) == '{"city": "Oslo"}'
        assert streamed[-1]["finish_reason"] == whole["finish_reason"] == "tool_calls"


def test_completions_take_every_kind_of_prompt(rig: Any) -> None:
    ids = rig.text.ids("one two")
    for prompt in ("one two", ["one two"], ids, [ids]):
        rig.worker.requests.clear()
        assert rig.complete(prompt).json()["choices"][0]["text"] == "hello"
        assert list(rig.worker.requests[0].prompt_ids) == ids
    body = rig.complete(["a", ids], n=2, return_token_ids=True).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert body["choices"][3]["prompt_token_ids"] == ids
    assert body["choices"][0]["token_ids"] == rig.text.ids("hello<|im_end|>")
    assert body["usage"]["prompt_tokens"] == len(ids) + 1


def test_control_tokens_spelled_in_a_prompt_are_plain_text(rig: Any) -> None:
    rig.complete("<|im_end|>[EOS]<think>")
    rig.chat("<|im_end|><|im_system|>")
    tokenizer = rig.gateway.service.model.tokenizer
    assert not any(map(tokenizer.is_special, rig.worker.requests[0].prompt_ids))
    chat = list(rig.worker.requests[1].prompt_ids)
    assert chat.count(tokenizer.special["<|im_end|>"]) == 2
    assert chat.count(tokenizer.special["<|im_system|>"]) == 1


def test_completion_text_shows_written_markers_and_hides_control_tokens(rig: Any) -> None:
    rig.says("<think>a</think>[EOT]b<|im_end|>")
    assert rig.complete(ignore_eos=True).json()["choices"][0]["text"] == "<think>a</think>b"
    assert list(rig.worker.requests[0].stop_token_ids) == []
    shown = rig.complete(ignore_eos=True, skip_special_tokens=False).json()
    assert shown["choices"][0]["text"] == "<think>a</think>[EOT]b<|im_end|>"


def test_completion_logprobs_have_offsets_and_alternatives(rig: Any) -> None:
    rig.says("héllo wörld<|im_end|>")
    body = rig.complete(logprobs=2).json()
    shown = body["choices"][0]["logprobs"]
    assert "".join(shown["tokens"]).startswith("h")
    assert shown["token_logprobs"] == [-0.5] * len(shown["tokens"])
    assert shown["text_offset"][0] == 0
    streamed = [chunk["choices"][0]["logprobs"] for chunk in frames(rig.complete(logprobs=2, stream=True))]
    for key in shown:
        assert [item for part in streamed for item in part[key]] == shown[key]


def test_streamed_completion_says_the_same(rig: Any) -> None:
    rig.says("one two – three<|im_end|>")
    chunks = frames(rig.complete(stream=True, return_token_ids=True, stream_options={"include_usage": True}))
    choices = [chunk["choices"][0] for chunk in chunks[:-1]]
    whole = rig.complete(return_token_ids=True).json()
    assert "".join(choice["text"] for choice in choices) == whole["choices"][0]["text"]
    assert [id_ for choice in choices for id_ in choice["token_ids"]] == whole["choices"][0]["token_ids"]
    assert choices[0]["prompt_token_ids"] == whole["choices"][0]["prompt_token_ids"]
    assert "prompt_token_ids" not in choices[1]
    assert chunks[-1]["usage"] == whole["usage"]


def test_models_are_listed_and_found_by_names_with_slashes(rig: Any, client: openai.OpenAI) -> None:
    assert [card.id for card in client.models.list()] == ["moonshotai/Kimi-K2-Thinking", "tiny"]
    card = rig.client.get("/v1/models/moonshotai/Kimi-K2-Thinking").json()
    assert card["max_model_len"] == 4096
    missing = rig.client.get("/v1/models/a/b")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="other", messages=[{"role": "user", "content": "x"}])


def test_the_context_is_that_of_the_worker_with_the_least(trio: Any, scripts: Any) -> None:
    """Any of them may be picked, or have to go on with the answer."""

    def announce(*lengths: int) -> Any:
        for worker, length in zip(trio.workers, lengths, strict=True):
            worker.max_model_len = length
        num_epochs = trio.controller.epoch.id.counter
        trio.controller.publish(trio.workers)
        scripts.until(lambda: trio.gateway.service.fleet.epoch.id.counter == num_epochs + 1, 5.0)
        return trio.client.get("/v1/models/tiny").json()["max_model_len"]

    assert announce(0, 0, 0) == 4096, "workers of an older build do not say"
    assert announce(9999, 9999, 9999) == 4096, "the gateway's own limit"
    assert announce(512, 64, 0) == 64
    told = trio.chat()
    assert told.status_code == 200
    (asked,) = (request for worker in trio.workers for request in worker.requests)
    assert len(asked.prompt_ids) + asked.max_tokens == 64
    refused = trio.chat(max_tokens=64)
    assert refused.status_code == 400
    assert "maximum context length is 64 tokens" in refused.json()["error"]["message"]
    assert announce(512, 512, 512) == 512


def test_advisory_fields_are_named_in_a_header(rig: Any) -> None:
    tool = json.loads(json.dumps(TOOL))
    tool["function"]["strict"] = True
    response = rig.chat(user="me", store=True, reasoning_effort="high", tools=[tool])
    assert response.headers["x-expertfleet-ignored"] == "reasoning_effort, store, user, tools.function.strict"
    assert "strict" not in rig.text.text(rig.worker.requests[0].prompt_ids)
    assert "x-expertfleet-ignored" not in rig.chat().headers


def test_sampling_fields_reach_the_worker(rig: Any) -> None:
    rig.chat(
        temperature=0.5, top_p=0.9, top_k=40, min_p=0.1, presence_penalty=1, frequency_penalty=-1, seed=-1,
        repetition_penalty=1.5, logit_bias={"5": 2.5}, stop_token_ids=[9], priority=3, cache_salt="t", timeout=30,
        thinking_token_budget=64,
    )  # fmt: skip
    request = rig.worker.requests[0]
    sampling = request.sampling
    assert [sampling.temperature, sampling.top_k, sampling.presence_penalty] == [0.5, 40, 1.0]
    assert [round(sampling.top_p, 6), round(sampling.min_p, 6), sampling.frequency_penalty] == [0.9, 0.1, -1.0]
    assert dict(sampling.logit_bias) == {5: 2.5}
    assert sampling.seed == (1 << 64) - 1
    assert 9 in request.stop_token_ids
    assert (request.priority, request.cache_salt) == (3, "t")
    assert 29 < request.deadline_s <= 30
    special = rig.gateway.service.model.tokenizer.special
    assert request.thinking_budget.max_tokens == 64
    assert list(request.thinking_budget.forced_ids) == [special["</think>"]]


def test_a_stop_token_of_the_client_is_counted_but_not_shown(rig: Any) -> None:
    ids = rig.text.ids("one two three")
    rig.says("one two three<|im_end|>")
    body = rig.complete(stop_token_ids=[ids[-1]], return_token_ids=True).json()
    assert body["choices"][0]["token_ids"] == ids
    assert body["choices"][0]["text"] == rig.text.text(ids[:-1])
