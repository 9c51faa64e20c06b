"""Which tool a call's header names.

Knows nothing of tokens or state. A header is ``functions.name:7``, ``name:7``, a declared name alone, or a bare
counter ``7``, which names the only tool there is, or else the one tool that the arguments fit.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_NUMBERED = re.compile(r"(?:functions\.)?(?P<name>[^\s:<>|][^\s:<>|]*):[0-9]+")
_BARE_COUNTER = re.compile(r"(?:functions\.)?:?[0-9]+")


@dataclass(frozen=True)
class Caller:
    """The tool's name, or None while only the arguments can tell which of ``tools`` it is."""

    name: str | None
    tools: Mapping[str, Mapping[str, Any]]

    def by_arguments(self, arguments: str) -> str | None:
        """The one tool whose parameters hold every key given and whose required ones are all given."""
        try:
            given = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
        if not isinstance(given, dict):
            return None
        fitting = [name for name, schema in self.tools.items() if _fits(given, schema)]
        return fitting[0] if len(fitting) == 1 else None


def name_of(header: str, tools: Mapping[str, Mapping[str, Any]]) -> Caller | None:
    """None for a header that names no tool: its call is dropped."""
    header = header.strip()
    if not tools:
        return None
    if _BARE_COUNTER.fullmatch(header):
        return Caller(next(iter(tools)) if len(tools) == 1 else None, tools)
    numbered = _NUMBERED.fullmatch(header)
    if numbered:
        return Caller(numbered["name"], tools)
    plain = header.removeprefix("functions.")
    return Caller(plain, tools) if plain in tools else None


def _fits(given: Mapping[str, Any], schema: Mapping[str, Any]) -> bool:
    properties, required = schema.get("properties"), schema.get("required")
    if not isinstance(properties, dict):
        return False
    return set(given) <= set(properties) and set(required if isinstance(required, list) else ()) <= set(given)
