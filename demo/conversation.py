"""A chat through the public API with the official client: tools are run here, and their results sent back.

Knows nothing of the fleet but its URL. Thinking goes back with every message, as K2-Thinking wants it within a turn.
"""

import copy
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import openai

Message = dict[str, Any]


@dataclass(frozen=True)
class ToolCall:
    """``arguments`` as the model wrote them."""

    id: str
    name: str
    arguments: str

    def parsed(self) -> Any:
        """None if they are not JSON."""
        try:
            return json.loads(self.arguments)
        except ValueError:
            return None


@dataclass(frozen=True)
class Reply:
    reasoning: str
    content: str
    calls: tuple[ToolCall, ...]
    finish_reason: str
    num_tokens: int
    took_s: float

    def message(self) -> Message:
        message: Message = {"role": "assistant", "reasoning_content": self.reasoning, "content": self.content}
        if self.calls:
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in self.calls
            ]
        return message


class Client:
    """Every reply is streamed; ``options`` go into each request."""

    def __init__(self, url: str, **options: Any) -> None:
        self._client = openai.AsyncOpenAI(
            base_url=f"{url}/v1", api_key="none", http_client=openai.DefaultAsyncHttpxClient(trust_env=False)
        )
        self._options = options
        self._model = ""

    def seeded(self, seed: int) -> Self:
        """The same client with another seed."""
        other = copy.copy(self)
        other._options = {**self._options, "seed": seed}
        return other

    async def answer(self, messages: Sequence[Message], tools: Sequence[Message] = ()) -> Reply:
        began = time.monotonic()
        if not self._model:
            self._model = (await self._client.models.list()).data[0].id
        request: dict[str, Any] = {**self._options, "messages": list(messages), "model": self._model}
        if tools:
            request["tools"] = list(tools)
        texts = {"reasoning": "", "content": ""}
        calls: dict[int, dict[str, str]] = {}
        finish_reason, num_tokens = "", 0
        async for event in self._events(request):
            num_tokens = event.usage.completion_tokens if event.usage else num_tokens
            for choice in event.choices:
                finish_reason = choice.finish_reason or finish_reason
                texts["reasoning"] += getattr(choice.delta, "reasoning_content", None) or ""
                texts["content"] += choice.delta.content or ""
                for delta in choice.delta.tool_calls or ():
                    call = calls.setdefault(delta.index, {"id": "", "name": "", "arguments": ""})
                    call["id"] += delta.id or ""
                    if delta.function:
                        call["name"] += delta.function.name or ""
                        call["arguments"] += delta.function.arguments or ""
        made = tuple(ToolCall(**call) for call in calls.values())
        return Reply(texts["reasoning"], texts["content"], made, finish_reason, num_tokens, time.monotonic() - began)

    async def converse(
        self,
        messages: Sequence[Message],
        tools: Sequence[Message],
        run: Callable[[ToolCall], str],
        max_replies: int,
    ) -> list[Reply]:
        """Replies up to the first one without a call, or up to ``max_replies``."""
        said, replies = list(messages), list[Reply]()
        while len(replies) < max_replies:
            replies.append(await self.answer(said, tools))
            said.append(replies[-1].message())
            if not replies[-1].calls:
                break
            said += [
                {"role": "tool", "tool_call_id": call.id, "name": call.name, "content": run(call)}
                for call in replies[-1].calls
            ]
        return replies

    async def close(self) -> None:
        await self._client.close()

    async def _events(self, request: Message) -> AsyncIterator[Any]:
        stream = await self._client.chat.completions.create(
            **request, stream=True, stream_options={"include_usage": True}
        )
        async for event in stream:
            yield event
