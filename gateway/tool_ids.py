"""Ids of tool calls as the model was trained on them: ``functions.{name}:{number}``, counted over the conversation.

Knows nothing of HTTP or tokens. Clients bring ids of any make; a model copies what it sees, so the history is renumbered
before it is rendered, and answers go on counting where the history ended.
"""

from collections import deque
from typing import Any

from .errors import bad_value, shown
from .messages import Message


def call_id(name: str, number: int) -> str:
    return f"functions.{name}:{number}"


def renumber(messages: list[Message]) -> tuple[list[Message], int]:
    """The messages with ids of our make, and the number of calls in them."""
    num_calls = 0
    answers: dict[str, deque[str]] = {}
    renumbered: list[Message] = []
    for index, message in enumerate(messages):
        if "tool_calls" in message:
            calls = _renumber_calls(message["tool_calls"], num_calls, answers)
            num_calls += len(calls)
            renumbered.append({**message, "tool_calls": calls})
        elif message["role"] == "tool":
            where = f"messages[{index}].tool_call_id"
            renumbered.append({**message, "tool_call_id": _answered(message["tool_call_id"], answers, where)})
        else:
            renumbered.append(message)
    return renumbered, num_calls


def _renumber_calls(calls: list[dict[str, Any]], first: int, answers: dict[str, deque[str]]) -> list[dict[str, Any]]:
    """An id used again in a later message names the later call; twice in one message, its answers come in order."""
    for call in calls:
        answers[call["id"]] = deque()
    renumbered = []
    for number, call in enumerate(calls, start=first):
        identity = call_id(call["function"]["name"], number)
        answers[call["id"]].append(identity)
        renumbered.append({**call, "id": identity})
    return renumbered


def _answered(identity: str, answers: dict[str, deque[str]], where: str) -> str:
    waiting = answers.get(identity)
    if waiting is None:
        raise bad_value(where, f"{shown(identity)} is the id of no earlier tool call")
    return waiting.popleft() if len(waiting) > 1 else waiting[0]
