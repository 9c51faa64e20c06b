"""The three client snippets that the model's card gives its users, in substance."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

SECTION = (
    "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:{0}<|tool_call_argument_begin|>"
    '{{"city": "Beijing"}}<|tool_call_end|><|tool_calls_section_end|><|im_end|>'
)
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Retrieve current weather information. Call this when the user asks about the weather.",
            "parameters": {
                "type": "object",
                "required": ["city"],
                "properties": {"city": {"type": "string", "description": "Name of the city"}},
            },
        },
    }
]


@pytest.fixture
def client(rig: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{rig.gateway.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def get_weather(city: str) -> dict[str, str]:
    return {"weather": f"Sunny in {city}"}


def then_answer(rig: Any, scripts: Any) -> None:
    """First a call, and once its result is in the prompt, an answer."""

    async def script(request: Any) -> Any:
        told = rig.text.text(request.prompt_ids)
        text = "It is sunny.<|im_end|>" if "Sunny in Beijing" in told else "I look it up." + SECTION.format(0)
        async for reply in scripts.say(rig.text.ids(f"<think>so</think>{text}"))(request):
            yield reply

    rig.worker.script = script


def test_simple_chat_with_list_content(rig: Any, scripts: Any, client: openai.OpenAI) -> None:
    rig.says("<think>who am I</think>I am Kimi.<|im_end|>")
    messages: Any = [
        {"role": "system", "content": "You are Kimi, an AI assistant created by Moonshot AI."},
        {"role": "user", "content": [{"type": "text", "text": "which one is bigger, 9.11 or 9.9?"}]},
    ]
    response = client.chat.completions.create(
        model=scripts.name, messages=messages, stream=False, temperature=1.0, max_tokens=3000
    )
    assert response.choices[0].message.content == "I am Kimi."
    assert response.choices[0].message.reasoning_content == "who am I"  # type: ignore[attr-defined]


def test_tool_calling_loop_appends_the_message(rig: Any, scripts: Any, client: openai.OpenAI) -> None:
    then_answer(rig, scripts)
    messages: Any = [
        {"role": "system", "content": "You are Kimi, an AI assistant created by Moonshot AI."},
        {"role": "user", "content": "What's the weather like in Beijing today?"},
    ]
    finish_reason = None
    while finish_reason is None or finish_reason == "tool_calls":
        completion = client.chat.completions.create(
            model=scripts.name, messages=messages, temperature=1.0, tools=TOOLS, tool_choice="auto"
        )
        choice = completion.choices[0]
        finish_reason = choice.finish_reason
        if finish_reason == "tool_calls":
            messages.append(choice.message)
            for tool_call in choice.message.tool_calls or []:
                assert tool_call.type == "function"
                result = get_weather(**json.loads(tool_call.function.arguments))
                messages.append(
                    {
                        "role": "tool",
                        "tool_call_id": tool_call.id,
                        "name": tool_call.function.name,
                        "content": json.dumps(result),
                    }
                )
    assert choice.message.content == "It is sunny."
    prompt = rig.text.text(rig.worker.requests[1].prompt_ids)
    assert "<think>so</think>I look it up.<|tool_calls_section_begin|>" in prompt
    assert "<|im_system|>get_weather<|im_middle|>## Return of functions.get_weather:0\n" in prompt


def test_streaming_loop_collects_text_and_tool_calls(rig: Any, scripts: Any, client: openai.OpenAI) -> None:
    then_answer(rig, scripts)
    messages: Any = [{"role": "user", "content": "What's the weather like in Beijing today?"}]
    finish_reason, answer, reasoning = None, "", ""
    while finish_reason is None or finish_reason == "tool_calls":
        completion = client.chat.completions.create(
            model=scripts.name, messages=messages, temperature=1.0, tools=TOOLS, tool_choice="auto", stream=True
        )
        tool_calls: list[dict[str, Any]] = []
        answer = ""
        for chunk in completion:
            delta = chunk.choices[0].delta
            if hasattr(delta, "content") and delta.content:
                answer += delta.content
            if hasattr(delta, "reasoning_content"):
                reasoning += delta.reasoning_content
            for call in delta.tool_calls or []:
                if len(tool_calls) <= call.index:
                    tool_calls.append({"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
                made = tool_calls[call.index]
                made["id"] += call.id or ""
                assert call.function is not None
                made["function"]["name"] += call.function.name or ""
                made["function"]["arguments"] += call.function.arguments or ""
            finish_reason = chunk.choices[0].finish_reason or finish_reason
        if finish_reason == "tool_calls":
            messages.append({"role": "assistant", "content": answer, "tool_calls": tool_calls})
            for made in tool_calls:
                content = json.dumps(get_weather(**json.loads(made["function"]["arguments"])))
                messages.append({"role": "tool", "tool_call_id": made["id"], "name": "get_weather", "content": content})
            finish_reason = "tool_calls"
    assert answer == "It is sunny."
    assert reasoning == "soso"
