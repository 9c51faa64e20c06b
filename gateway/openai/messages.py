"""A client's messages, checked and brought into the one form that the chat template is given.

Knows nothing of tokens, nor of keys that are not read (``inner_fields.py``). The result holds only keys the template reads;
text parts are joined, nulls dropped but for an assistant's ``content``, which is null if it is absent; ``reasoning`` becomes
``reasoning_content``, ``developer`` becomes ``system``; ids of tool calls are left to ``tool_ids.py``.
"""

import re
from typing import Any

from ...proto.errors import shown
from ..http.errors import bad_value, missing, unsupported
from ..http.json_text import check_depth
from .inner_fields import CALL, CALLED, MESSAGES, PART, TEXT_TYPES, check_keys, says_nothing

Message = dict[str, Any]

_NAME = re.compile(r"[^\s<>|\\/\x00-\x1f]{1,64}")
_MAX_MESSAGES = 65536


def read_messages(raw: list[dict[str, Any]], ignored: set[str]) -> list[Message]:
    """``ignored`` gets the keys that are not read, as the header names them."""
    if len(raw) > _MAX_MESSAGES:
        raise bad_value("messages", f"{len(raw)} messages are more than the limit of {_MAX_MESSAGES}")
    return [_read_message(message, f"messages[{index}]", ignored) for index, message in enumerate(raw)]


def _read_message(raw: dict[str, Any], where: str, ignored: set[str]) -> Message:
    role = raw.get("role")
    if role is None:
        raise missing(f"{where}.role")
    if not isinstance(role, str) or role not in MESSAGES:
        raise bad_value(f"{where}.role", f"{shown(role)} is not one of {', '.join(MESSAGES)}")
    spoken = {**raw, "reasoning_content": raw.get("reasoning_content") or raw.get("reasoning")}
    check_keys(raw, MESSAGES[role], where, ignored, spoken)
    message: Message = {"role": "system" if role == "developer" else role}
    if raw.get("name") not in (None, ""):
        message["name"] = _read_name(raw["name"], f"{where}.name")
    content = raw.get("content")
    if content is None and role != "assistant":
        raise missing(f"{where}.content")
    message["content"] = content if content is None else _read_content(content, f"{where}.content", ignored)
    if role == "assistant":
        _read_assistant(raw, message, where, ignored)
    if role == "tool":
        message["tool_call_id"] = _text(raw.get("tool_call_id"), f"{where}.tool_call_id")
    return message


def _read_assistant(raw: dict[str, Any], message: Message, where: str, ignored: set[str]) -> None:
    for name in ("reasoning", "reasoning_content"):
        if not says_nothing(raw.get(name)):
            message["reasoning_content"] = _text(raw[name], f"{where}.{name}")
    if not says_nothing(raw.get("reasoning")) and raw["reasoning"] != message["reasoning_content"]:
        raise bad_value(f"{where}.reasoning", f"{shown(raw['reasoning'])} contradicts reasoning_content")
    calls = raw.get("tool_calls")
    if says_nothing(calls):
        return
    if not isinstance(calls, list):
        raise bad_value(f"{where}.tool_calls", f"{shown(calls)} is not a list")
    message["tool_calls"] = [_read_call(call, f"{where}.tool_calls[{i}]", ignored) for i, call in enumerate(calls)]


def _read_call(raw: Any, where: str, ignored: set[str]) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise bad_value(where, f"{shown(raw)} is not an object")
    if (raw.get("type") or "function") != "function":
        raise unsupported(f"{where}.type", f"{shown(raw['type'])} is not supported, only 'function' is")
    function = raw.get("function")
    if function is None:
        raise missing(f"{where}.function")
    if not isinstance(function, dict):
        raise bad_value(f"{where}.function", f"{shown(function)} is not an object")
    check_keys(raw, CALL, where, ignored, function)
    check_keys(function, CALLED, f"{where}.function", ignored)
    return {
        "id": _text(raw.get("id"), f"{where}.id"),
        "type": "function",
        "function": {
            "name": _read_name(function.get("name"), f"{where}.function.name"),
            "arguments": _read_arguments(function.get("arguments"), f"{where}.function.arguments"),
        },
    }


def _read_arguments(arguments: Any, where: str) -> str | dict[str, Any]:
    """Of a tool without arguments many clients send none, or nothing in another type; the model is shown ``{}``."""
    if says_nothing(arguments) or (isinstance(arguments, str) and not arguments.strip()):
        return "{}"
    if not isinstance(arguments, (str, dict)):
        raise bad_value(where, f"{shown(arguments)} is not a string holding JSON")
    check_depth(arguments, where)
    return arguments


def _read_content(content: Any, where: str, ignored: set[str]) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise bad_value(where, f"{shown(content)} is neither a string nor a list of text parts")
    return "".join(_read_part(part, f"{where}[{index}]", ignored) for index, part in enumerate(content))


def _read_part(part: Any, where: str, ignored: set[str]) -> str:
    if not isinstance(part, dict):
        raise bad_value(where, f"{shown(part)} is not an object")
    if part.get("type") is None:
        raise missing(f"{where}.type")
    if part["type"] not in TEXT_TYPES:
        raise unsupported(f"{where}.type", f"{shown(part['type'])} is not supported: the model reads text only")
    check_keys(part, PART, where, ignored)
    return _text(part.get("text"), f"{where}.text")


def _read_name(name: Any, where: str) -> str:
    if name is None:
        raise missing(where)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise bad_value(where, f"{shown(name)} must have 1 to 64 characters, no white space and none of < > | \\ /")
    return name


def _text(value: Any, where: str) -> str:
    if value is None:
        raise missing(where)
    if not isinstance(value, str):
        raise bad_value(where, f"{shown(value)} is not a string")
    return value
