"""A client's messages, checked and brought into the one form that the chat template is given.

Knows nothing of tokens. The result holds only keys the template reads; text parts are joined, nulls dropped,
``reasoning`` becomes ``reasoning_content``, ``developer`` becomes ``system``; ids of tool calls are left to
``tool_ids.py``.
"""

import re
from typing import Any

from .errors import bad_value, shown, unsupported

Message = dict[str, Any]

_NAME = re.compile(r"[^\s<>|\\/\x00-\x1f]{1,64}")
_MAX_MESSAGES = 65536
_COMMON = {"role", "content", "name"}
_FIELDS = {
    "system": _COMMON,
    "developer": _COMMON,
    "user": _COMMON,
    "assistant": _COMMON | {"tool_calls", "reasoning_content", "reasoning", "annotations"},
    "tool": _COMMON | {"tool_call_id"},
}
# Fields of other servers' messages that may be present with a value that says nothing.
_HARMLESS = {"partial": False, "prefix": False, "function_call": {}, "tool_calls": []}


def read_messages(raw: list[dict[str, Any]]) -> list[Message]:
    if len(raw) > _MAX_MESSAGES:
        raise bad_value("messages", f"{len(raw)} messages are more than the limit of {_MAX_MESSAGES}")
    return [_read_message(message, f"messages[{index}]") for index, message in enumerate(raw)]


def _read_message(raw: dict[str, Any], where: str) -> Message:
    role = raw.get("role")
    if not isinstance(role, str) or role not in _FIELDS:
        raise bad_value(f"{where}.role", f"{shown(role)} is not one of {', '.join(_FIELDS)}")
    _refuse_unknown(raw, _FIELDS[role], where)
    message: Message = {"role": "system" if role == "developer" else role}
    if raw.get("name") is not None:
        message["name"] = _read_name(raw["name"], f"{where}.name")
    content = raw.get("content")
    if content is not None:
        message["content"] = _read_content(content, f"{where}.content")
    elif role != "assistant":
        raise bad_value(f"{where}.content", "this field is required", code="missing_required_parameter")
    if role == "assistant":
        _read_assistant(raw, message, where)
    if role == "tool":
        message["tool_call_id"] = _text(raw.get("tool_call_id"), f"{where}.tool_call_id")
    return message


def _refuse_unknown(raw: dict[str, Any], known: set[str], where: str) -> None:
    for name, value in raw.items():
        if name not in known and value is not None and not (name in _HARMLESS and value == _HARMLESS[name]):
            raise bad_value(f"{where}.{name[:80]}", "unknown field, or one that is not supported in this role")


def _read_assistant(raw: dict[str, Any], message: Message, where: str) -> None:
    for name in ("reasoning", "reasoning_content"):
        if raw.get(name) is not None:
            message["reasoning_content"] = _text(raw[name], f"{where}.{name}")
    calls = raw.get("tool_calls")
    if calls is None:
        return
    if not isinstance(calls, list):
        raise bad_value(f"{where}.tool_calls", f"{shown(calls)} is not a list")
    if calls:
        message["tool_calls"] = [_read_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)]


def _read_call(raw: Any, where: str) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise bad_value(where, f"{shown(raw)} is not an object")
    _refuse_unknown(raw, {"id", "type", "function", "index"}, where)
    if raw.get("type") not in (None, "function"):
        raise unsupported(f"{where}.type", f"{shown(raw['type'])} is not supported, only 'function' is")
    function = raw.get("function")
    if not isinstance(function, dict):
        raise bad_value(f"{where}.function", f"{shown(function)} is not an object")
    _refuse_unknown(function, {"name", "arguments"}, f"{where}.function")
    arguments = function.get("arguments")
    if not isinstance(arguments, (str, dict)):
        raise bad_value(f"{where}.function.arguments", f"{shown(arguments)} is not a string holding JSON")
    name = _read_name(function.get("name"), f"{where}.function.name")
    return {
        "id": _text(raw.get("id"), f"{where}.id"),
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def _read_content(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise bad_value(where, f"{shown(content)} is neither a string nor a list of text parts")
    return "".join(_read_part(part, f"{where}[{index}]") for index, part in enumerate(content))


def _read_part(part: Any, where: str) -> str:
    if not isinstance(part, dict):
        raise bad_value(where, f"{shown(part)} is not an object")
    if part.get("type") != "text":
        raise unsupported(f"{where}.type", f"{shown(part.get('type'))} is not supported: the model reads text only")
    _refuse_unknown(part, {"type", "text"}, where)
    return _text(part.get("text"), f"{where}.text")


def _read_name(name: Any, where: str) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise bad_value(where, f"{shown(name)} must have 1 to 64 characters, no white space and none of < > | \\ /")
    return name


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise bad_value(where, f"{shown(value)} is not a string")
    return value
