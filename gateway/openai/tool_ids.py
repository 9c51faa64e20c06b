"""Ids of tool calls as the model was trained on them: ``functions.{name}:{number}``, counted over the conversation.

Knows nothing of HTTP or tokens. Clients bring ids of any make, and leave out old turns; a model copies what it sees. So there
are two countings. 1. The model is shown the history's calls as 0, 1, 2, …, by their place alone: a call keeps its number while
the conversation grows. 2. The client is given ids that its history does not hold: they go on from the largest number in it.
"""

import re
from collections import deque
from collections.abc import Iterator
from typing import Any

from ...proto.errors import shown
from ..http.errors import bad_value
from .messages import Message

# As we make them, or without ``functions.``, or as clients spell them that know letters, digits, "_" and "-" alone.
_NUMBERED = re.compile(r"(?:functions[._-].+[:_-]|[^:]+:)(?P<number>[0-9]{1,100})", re.DOTALL)


def call_id(name: str, number: int) -> str:
    return f"functions.{name}:{number}"


def renumber(messages: list[Message]) -> tuple[list[Message], int]:
    """The messages as the model is shown them, and the number of the next call as the client is shown it."""
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
    return renumbered, max(num_calls, 1 + max(_numbers(answers), default=-1))


def _numbers(identities: dict[str, deque[str]]) -> Iterator[int]:
    for identity in identities:
        numbered = _NUMBERED.fullmatch(identity)
        if numbered:
            yield int(numbered["number"])


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
