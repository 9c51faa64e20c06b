"""One JSON text to its value, or the field of it that is at fault.

Knows nothing of what the value means. Python's parser says what is wrong, and where in the text a comma is missing; where it
does not say where, the text is read again member by member, and the one that fails alone is read so, too.
"""

import json
import math
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from .errors import bad_value

# Deeper values have no use, and the code that walks them has an end of its own.
MAX_DEPTH = 100
# So deep that the chat template, which copies what it is given, takes it.
MAX_SCHEMA_DEPTH = 60
_SPACE = " \t\n\r"
_HALF_OF_A_PAIR = re.compile(r"\\u[dD][89a-fA-F]")
# In so many steps a field is found, and the field that holds what is too deep. The larger a text, the longer takes each.
_STEPS = 8
_STEPS_TO_DEPTH = 4
_LARGE = 1 << 20


class Fault(ValueError):
    """``path`` names the field as clients write it; "" where none can be named."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(message)
        self.path = path


def parse(raw: bytes) -> Any:
    """Raises Fault."""
    wrong = ""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        text, wrong = raw.decode("utf-8", "surrogateescape"), f"byte {error.start} is not UTF-8"
    reader = _Reader(text, may_hold_halves=bool(wrong or _HALF_OF_A_PAIR.search(text)))
    try:
        value = _DECODER.decode(text)
        reader.check(value, MAX_DEPTH)
    except json.JSONDecodeError as error:
        raise Fault("", wrong or str(error)) from error
    except RecursionError as error:
        raise Fault(reader.place(_STEPS_TO_DEPTH), f"nested deeper than the limit of {MAX_DEPTH} levels") from error
    except ValueError as error:
        raise Fault(reader.place(_STEPS), wrong or _why(error)) from error
    return value


def check_depth(value: Any, where: str) -> None:
    if _is_deeper(value, MAX_SCHEMA_DEPTH):
        raise bad_value(where, f"nested deeper than the limit of {MAX_SCHEMA_DEPTH} levels")


class _NoNumber(ValueError):
    pass


def _number(text: str) -> float:
    if math.isinf(value := float(text)):
        raise _NoNumber(f"{text[:80]} is beyond the range of a number")
    return value


def _constant(name: str) -> NoReturn:
    raise _NoNumber(f"{name} is not a JSON number")


_DECODER = json.JSONDecoder(parse_float=_number, parse_constant=_constant)


def _why(error: ValueError) -> str:
    if isinstance(error, UnicodeEncodeError):
        return "a string holds half of a surrogate pair"
    return str(error) if isinstance(error, _NoNumber) else "a whole number has too many digits"


def _is_deeper(value: Any, limit: int) -> bool:
    """Whether more than ``limit`` lists and objects lie in each other."""
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(limit):
        level = [
            item
            for outer in level
            for item in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(item, (dict, list))
        ]
    return bool(level)


class _Reader:
    def __init__(self, text: str, *, may_hold_halves: bool) -> None:
        self._text = text
        self._may_be_deep = text.count("[") + text.count("{") > MAX_DEPTH
        self._may_hold_halves = may_hold_halves

    def check(self, value: Any, room: int) -> None:
        """Raises RecursionError or UnicodeEncodeError."""
        if self._may_be_deep and _is_deeper(value, room):
            raise RecursionError
        if self._may_hold_halves:
            json.dumps(value, ensure_ascii=False).encode("utf-8")

    def place(self, most_steps: int) -> str:
        """The path of the innermost value that fails by itself."""
        path, at = "", self._skip(0)
        for num_steps in range(1, (1 if len(self._text) > _LARGE else most_steps) + 1):
            failing = self._failing_member(at, MAX_DEPTH - num_steps)
            if failing is None:
                break
            path, at = path + failing[0], failing[1]
        return path.removeprefix(".")

    def _failing_member(self, at: int, room: int) -> tuple[str, int] | None:
        begun = None
        try:
            for member in self._members(at, room):
                begun = member
        except IndexError:
            return None
        except (ValueError, RecursionError):
            return begun
        return None

    def _members(self, at: int, room: int) -> Iterator[tuple[str, int]]:
        """The step to each member of the value at ``at``, and where the member begins; it is read thereafter."""
        text, index = self._text, 0
        is_object = text[at] == "{"
        if not is_object and text[at] != "[":
            return
        at = self._skip(at + 1)
        while text[at] not in "}]":
            step = f"[{index}]"
            if is_object:
                name, at = _DECODER.raw_decode(text, at)
                step, at = f".{name}", self._skip(self._skip(at) + 1)
            yield step, at
            value, at = _DECODER.raw_decode(text, at)
            self.check(value, room)
            at, index = self._skip(at), index + 1
            if text[at] == ",":
                at = self._skip(at + 1)

    def _skip(self, at: int) -> int:
        while self._text[at] in _SPACE:
            at += 1
        return at
