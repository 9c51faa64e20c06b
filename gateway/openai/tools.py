"""The tools a client declares, and whether the model may call them.

Knows nothing of calls in the answer (``output_parser.py``). ``required`` and a named tool need constrained decoding and are
refused until workers have it.
"""

import re
from dataclasses import dataclass
from typing import Any

from ...proto.errors import shown
from ..http.errors import bad_value, missing, unsupported
from ..http.json_text import check_depth
from .inner_fields import FUNCTION, TOOL, check_keys
from .schemas import ChatRequest

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True)
class Toolbox:
    """``declared`` goes into the prompt; calls are forbidden or ended after the first as the client asked."""

    declared: tuple[dict[str, Any], ...] = ()
    callable: bool = False
    one_call: bool = False

    @property
    def forbids_calls(self) -> bool:
        return bool(self.declared) and not self.callable

    @property
    def parameters(self) -> dict[str, dict[str, Any]]:
        """The parameter schema of each tool, by name."""
        return {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in self.declared}


def read_tools(request: ChatRequest, ignored: set[str]) -> Toolbox:
    """``ignored`` gets the keys that are not read, as the header names them."""
    choice = _read_choice(request.tool_choice, bool(request.tools))
    tools = [_read_tool(tool, f"tools[{index}]", ignored) for index, tool in enumerate(request.tools)]
    names = [tool["function"]["name"] for tool in tools]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise bad_value(f"tools[{index}].function.name", f"{shown(name)} is declared twice")
    callable_ = bool(tools) and choice == "auto"
    return Toolbox(tuple(tools), callable_, not request.parallel_tool_calls)


def _read_choice(choice: Any, has_tools: bool) -> str:
    if choice in (None, "none", "auto"):
        return choice or "auto"
    named = choice.get("function") if isinstance(choice, dict) else None
    if choice == "required" or isinstance(named, dict):
        wanted = "required" if choice == "required" else "a named tool"
        reason = "constrained decoding is not available yet" if has_tools else "no tools are given"
        raise unsupported("tool_choice", f"{wanted} is not supported: {reason}; use 'auto' or 'none'")
    raise bad_value("tool_choice", f"{shown(choice)} is neither 'none' nor 'auto'")


def _read_tool(raw: dict[str, Any], where: str, ignored: set[str]) -> dict[str, Any]:
    """Honoured keys alone; what stands in ``parameters`` is the schema's own."""
    if raw.get("type") is None:
        raise missing(f"{where}.type")
    if raw["type"] != "function":
        raise unsupported(f"{where}.type", f"{shown(raw['type'])} is not supported, only 'function' is")
    function = raw.get("function")
    if function is None:
        raise missing(f"{where}.function")
    if not isinstance(function, dict):
        raise bad_value(f"{where}.function", f"{shown(function)} is not an object")
    check_keys(raw, TOOL, where, ignored, function)
    check_keys(function, FUNCTION, f"{where}.function", ignored)
    _check_function(function, f"{where}.function")
    return {"type": "function", "function": {key: function[key] for key in FUNCTION.honoured & set(function)}}


def _check_function(function: dict[str, Any], where: str) -> None:
    name = function.get("name")
    if name is None:
        raise missing(f"{where}.name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise bad_value(f"{where}.name", f"{shown(name)} must have 1 to 64 letters, digits, '_', '-' or '.'")
    if not isinstance(function.get("description") or "", str):
        raise bad_value(f"{where}.description", f"{shown(function['description'])} is not a string")
    if not isinstance(function.get("parameters") or {}, dict):
        raise bad_value(f"{where}.parameters", f"{shown(function['parameters'])} is not an object")
    if function.get("strict") not in (None, True, False):
        raise bad_value(f"{where}.strict", f"{shown(function['strict'])} is not true or false")
    check_depth(function.get("parameters"), f"{where}.parameters")
