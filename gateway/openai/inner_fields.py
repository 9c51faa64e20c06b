"""What the keys of a request's inner objects do: of messages, their text parts and calls, and of tools.

Knows nothing of the values of honoured keys (``messages.py`` and ``tools.py`` check those). The prompt is made of honoured
keys alone. A key is refused where leaving it out would change what the model is to read or how its answer begins: media,
other content, another spelling of an honoured key. A key that says once more what an honoured one says, and every other
key, is dropped and named in ``x-expertfleet-ignored``; so is a refused one whose value says nothing, or the same words.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from ...proto.errors import shown
from ..http.errors import bad_value, unsupported

_MAX_NAME = 80
# Shorter names have too many neighbours, and these are words of their own: Azure's answers tell a ``context``.
_SHORTEST = 4
_WORDS = frozenset({"context", "next", "test"})
_CAPITAL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")

_COMMON = frozenset({"role", "content", "name"})
HONOURED_IN_MESSAGES: Mapping[str, frozenset[str]] = {
    "system": _COMMON,
    "developer": _COMMON,
    "user": _COMMON,
    "assistant": _COMMON | {"tool_calls", "reasoning_content", "reasoning"},
    "tool": _COMMON | {"tool_call_id"},
}
# Words in a key's name that tell of something to look at or to listen to.
MEDIA = frozenset(
    {"attachment", "attachments", "audio", "document", "documents", "file", "files"}
    | {"image", "images", "media", "video", "videos"}
)
# Other content, and switches for how the answer begins.
CONTENT = frozenset(
    {"content_blocks", "content_parts", "custom", "function_call", "input", "output", "outputs", "parts", "prompt"}
    | {"refusal", "response", "result", "results", "text", "tool_invocations", "tool_outputs", "tool_responses"}
    | {"tool_results"}
)
SWITCHES = frozenset({"continue_final_message", "partial", "prefill", "prefix"})
# Key → the honoured one that it repeats.
REPEATED_IN_MESSAGES: Mapping[str, str] = {
    "parsed": "content",
    "reasoning_details": "reasoning_content",
    "reasoning_items": "reasoning_content",
    "reasoning_summary": "reasoning_content",
    "reasoning_text": "reasoning_content",
    "think": "reasoning_content",
    "thinking": "reasoning_content",
    "thinking_blocks": "reasoning_content",
    "thought": "reasoning_content",
    "thoughts": "reasoning_content",
    "tool_plan": "reasoning_content",
}
REPEATED_IN_PARTS: Mapping[str, str] = dict.fromkeys(("content", "value"), "text")
REPEATED_IN_CALLS: Mapping[str, str] = dict.fromkeys(
    ("args", "input", "parameters", "params", "parsed_arguments"), "arguments"
)
REPEATED_IN_FUNCTIONS: Mapping[str, str] = dict.fromkeys(
    ("args_schema", "arguments", "input_schema", "parameters_json_schema", "params", "schema"), "parameters"
)


@dataclass(frozen=True)
class Kind:
    """Objects of one kind; ``name`` is what the header calls them."""

    name: str
    honoured: frozenset[str]
    refused: frozenset[str] = frozenset()
    media: frozenset[str] = frozenset()
    repeated: Mapping[str, str] = field(default_factory=dict)


def _message(role: str) -> Kind:
    honoured = HONOURED_IN_MESSAGES[role]
    of_others = frozenset[str]().union(*HONOURED_IN_MESSAGES.values()) - honoured
    return Kind("messages", honoured, CONTENT | SWITCHES | of_others, MEDIA, REPEATED_IN_MESSAGES)


MESSAGES: Mapping[str, Kind] = {role: _message(role) for role in HONOURED_IN_MESSAGES}
# The Responses API has two names for one thing.
TEXT_TYPES = ("text", "input_text", "output_text")
PART = Kind("messages.content", frozenset({"type", "text"}), CONTENT - {"text"}, MEDIA, REPEATED_IN_PARTS)
CALLED = Kind(
    "messages.tool_calls.function", frozenset({"name", "arguments"}), CONTENT - {"input"}, MEDIA, REPEATED_IN_CALLS
)
CALL = Kind(
    "messages.tool_calls",
    frozenset({"id", "type", "function"}),
    CONTENT - {"input"},
    MEDIA,
    {**REPEATED_IN_CALLS, **{name: name for name in CALLED.honoured}},
)
FUNCTION = Kind("tools.function", frozenset({"name", "description", "parameters"}), repeated=REPEATED_IN_FUNCTIONS)
TOOL = Kind(
    "tools",
    frozenset({"type", "function"}),
    frozenset({"custom"}),
    repeated={**REPEATED_IN_FUNCTIONS, **{name: name for name in FUNCTION.honoured}},
)


def check_keys(
    raw: Mapping[str, Any],
    kind: Kind,
    where: str,
    ignored: set[str],
    repeats: Mapping[str, Any] | None = None,
) -> None:
    """Refuses what must not be dropped; all else that is not honoured is added to ``ignored``, if it is not null.

    ``repeats``: the object that holds the honoured keys which others may repeat, if it is not ``raw`` itself.
    """
    for name, value in raw.items():
        if name in kind.honoured or value is None:
            continue
        if not says_nothing(value):
            _refuse_if_needed(name, value, kind, where, raw if repeats is None else repeats)
        ignored.add(f"{kind.name}.{quote(name[:_MAX_NAME], safe='$')}")


def says_nothing(value: Any) -> bool:
    """Null, false, an empty string or list, or an object of nothing else."""
    if isinstance(value, dict):
        return all(says_nothing(item) for item in value.values())
    return value is None or value is False or value in ("", [])


def _text_of(value: Any) -> str | None:
    """A string, or text parts joined; None where anything else is among them."""
    if isinstance(value, list):
        texts = [_text_of(part) if isinstance(part, dict) else None for part in value]
        return None if None in texts else "".join(text or "" for text in texts)
    if isinstance(value, dict):
        is_text = value.get("type", "text") in TEXT_TYPES and value.keys() <= {"type", "text", "state", "annotations"}
        return _text_of(value["text"]) if is_text and isinstance(value.get("text"), str) else None
    return value if isinstance(value, str) else None


def _refuse_if_needed(name: str, value: Any, kind: Kind, where: str, beside: Mapping[str, Any]) -> None:
    key = _CAPITAL.sub("_", name).lower().replace("-", "_")
    place = f"{where}.{name[:_MAX_NAME]}"
    is_switch = isinstance(value, (bool, int, float))
    words = _text_of(value) if key in CONTENT and "content" in kind.honoured else None
    if words is not None and words == _text_of(beside.get("content") or ""):
        return
    if key in kind.refused or (not is_switch and not kind.media.isdisjoint(key.split("_"))):
        raise unsupported(place, f"{shown(value)} is not supported here, and without it the prompt would be another")
    if is_switch:
        return
    repeated = kind.repeated.get(key)
    if repeated is not None:
        if says_nothing(beside.get(repeated)) and _is_readable(value, repeated):
            raise unsupported(place, f"{shown(value)} is not read; give it as {repeated}")
    elif (meant := _meant(key, kind.honoured)) is not None and value != beside.get(meant):
        raise bad_value(place, f"unknown field (did you mean {meant!r}?)", code="unknown_parameter")


def _is_readable(value: Any, repeated: str) -> bool:
    """Whether a model could read it: reasoning is also kept in blocks of its maker's, encrypted or with a signature alone."""
    if repeated != "reasoning_content" or isinstance(value, str):
        return True
    if isinstance(value, list):
        return any(_is_readable(item, repeated) for item in value if not says_nothing(item))
    readable = [value.get(key) for key in ("text", "thinking", "summary", "content")] if isinstance(value, dict) else []
    return any(_is_readable(item, repeated) for item in readable if not says_nothing(item))


def _meant(key: str, honoured: frozenset[str]) -> str | None:
    """The honoured key of which this is another spelling; names that begin with a line are their owner's."""
    if key in honoured:
        return key
    known_ones = (
        () if key.startswith("_") or key in _WORDS else (known for known in sorted(honoured) if len(known) >= _SHORTEST)
    )
    return next((known for known in known_ones if _is_one_off(key, known)), None)


def _is_one_off(key: str, known: str) -> bool:
    """One letter too many, too few, or another one, or two that changed places."""
    if abs(len(key) - len(known)) > 1:
        return False
    start = next((index for index, (a, b) in enumerate(zip(key, known, strict=False)) if a != b), len(known))
    ours, theirs = key[start:], known[start:]
    swapped = theirs[1:2] + theirs[:1] + theirs[2:]
    return ours in (theirs[1:], swapped) or ours[1:] in (theirs, theirs[1:])
