"""What a dialogue consists of, and how it looks as the messages of a chat API.

Knows nothing of what is said. A turn is what the user says and the steps of the answer: thinking and tool calls, then
the results; its last step has no calls. Call ids are ``functions.NAME:N`` with one counter for the whole dialogue, as
K2-Thinking numbers them.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]


@dataclass(frozen=True)
class Call:
    name: str
    arguments: dict[str, Any]
    result: str


@dataclass(frozen=True)
class Step:
    reasoning: str
    content: str = ""
    calls: tuple[Call, ...] = ()


@dataclass(frozen=True)
class Turn:
    """``facts``: words that a right answer contains; ``kind`` names the task for the scores."""

    kind: str
    user: str
    steps: tuple[Step, ...]
    facts: tuple[str, ...] = ()

    @property
    def answer(self) -> Step:
        return self.steps[-1]

    @property
    def calls(self) -> tuple[Call, ...]:
        return tuple(call for step in self.steps for call in step.calls)


@dataclass(frozen=True)
class Dialogue:
    turns: tuple[Turn, ...]
    tools: tuple[Message, ...] = ()
    system: str | None = None

    @property
    def last(self) -> Turn:
        return self.turns[-1]

    def question(self) -> list[Message]:
        """The messages up to what the user says last."""
        messages, calls_made = self._opening(), 0
        for turn in self.turns[:-1]:
            messages += _messages(turn, calls_made)
            calls_made += len(turn.calls)
        return [*messages, {"role": "user", "content": self.last.user}]

    def messages(self) -> list[Message]:
        calls_made = sum(len(turn.calls) for turn in self.turns[:-1])
        return [*self.question(), *list(_messages(self.last, calls_made))[1:]]

    def _opening(self) -> list[Message]:
        return [] if self.system is None else [{"role": "system", "content": self.system}]


def tool(name: str, description: str, properties: dict[str, Message], required: list[str], **more: Any) -> Message:
    parameters = {"type": "object", "properties": properties, "required": required, **more}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def _messages(turn: Turn, calls_made: int) -> Iterator[Message]:
    yield {"role": "user", "content": turn.user}
    for step in turn.steps:
        ids = [f"functions.{call.name}:{calls_made + index}" for index, call in enumerate(step.calls)]
        calls_made += len(ids)
        message: Message = {"role": "assistant", "reasoning_content": step.reasoning, "content": step.content}
        if step.calls:
            message["tool_calls"] = [_tool_call(*pair) for pair in zip(ids, step.calls, strict=True)]
        yield message
        for call_id, call in zip(ids, step.calls, strict=True):
            yield {"role": "tool", "tool_call_id": call_id, "name": call.name, "content": call.result}


def _tool_call(call_id: str, call: Call) -> Message:
    function = {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)}
    return {"id": call_id, "type": "function", "function": function}
