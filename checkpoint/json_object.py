"""A JSON object of a checkpoint, read with typed, bounded getters whose errors name file, key, value and limit.

Knows nothing of what the keys mean. Numbers must be numbers (no strings, no booleans, no NaN); a key written twice is
an error, because two readers could disagree about which one counts.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from .errors import CheckpointError
from .mistakes import START_BYTES, file_is, folder_lacks

_MAX_FILE_BYTES = 256 << 20
_MAX_INTEGER = 1 << 31
_JSON_NAMES = {
    list: "a list",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


@dataclass(frozen=True)
class JsonObject:
    file: str
    data: Mapping[str, Any]
    prefix: str = ""

    def error(self, key: str, problem: str) -> CheckpointError:
        return CheckpointError(self.file, self.prefix + key, problem)

    def has(self, key: str) -> bool:
        """Present and not null."""
        return self.data.get(key) is not None

    def integer(self, key: str, *, minimum: int = 1, maximum: int = _MAX_INTEGER, default: int | None = None) -> int:
        value = self._present(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(key, f"must be a whole number, is {value!r}")
        return int(self._bounded(key, value, minimum, maximum))

    def number(self, key: str, *, minimum: float = 0.0, maximum: float = 1e9, default: float | None = None) -> float:
        value = self._present(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise self.error(key, f"must be a finite number, is {value!r}")
        return float(self._bounded(key, value, minimum, maximum))

    def boolean(self, key: str, *, default: bool | None = None) -> bool:
        value = self._present(key, default)
        if not isinstance(value, bool):
            raise self.error(key, f"must be true or false, is {value!r}")
        return value

    def text(self, key: str, *, default: str | None = None) -> str:
        value = self._present(key, default)
        if not isinstance(value, str):
            raise self.error(key, f"must be text, is {value!r}")
        return value

    def items(self, key: str) -> list[Any]:
        value = self._present(key, None)
        if not isinstance(value, list):
            raise self.error(key, f"must be a list, is {value!r}")
        return value

    def object(self, key: str) -> "JsonObject":
        value = self._present(key, None)
        if not isinstance(value, dict):
            raise self.error(key, f"must be an object, is {value!r}")
        return JsonObject(self.file, value, f"{self.prefix}{key}.")

    def expect(self, key: str, *allowed: Any, read: Callable[[Any], Any] | None = None) -> None:
        """The value (null where the key is absent), or what ``read`` makes of it, is one of ``allowed``."""
        given = self.data.get(key)
        value = given if read is None else read(given)
        if not any(value == choice and type(value) is type(choice) for choice in allowed):
            choices = " or ".join(json.dumps(choice) for choice in allowed)
            raise self.error(key, f"{json.dumps(given)} is not supported (must be {choices})")

    def _present(self, key: str, default: Any) -> Any:
        value = self.data.get(key)
        if value is None:
            if default is None:
                raise self.error(key, "missing")
            return default
        return value

    def _bounded(self, key: str, value: float, minimum: float, maximum: float) -> float:
        if not minimum <= value <= maximum:
            raise self.error(key, f"{value} is out of range ({minimum} to {maximum})")
        return value


def optional(path: Path) -> bool:
    """Whether it is there. Raises CheckpointError where it should be: a link leads nowhere, or a download was not finished."""
    if not path.exists() and (hint := folder_lacks(path)):
        raise CheckpointError(path, "", "No such file", hint)
    return path.exists()


def read_json_object(path: Path) -> JsonObject:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise CheckpointError(path, "", f"{path.stat().st_size} bytes long, limit {_MAX_FILE_BYTES}")
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            path, "", error.strerror or str(error), "" if path.exists() else folder_lacks(path)
        ) from error
    return JsonObject(str(path), parse_json_object(content, str(path)))


def parse_json_object(content: bytes, file: str) -> dict[str, Any]:
    def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise CheckpointError(file, twice, "occurs twice")
        return found

    def no_constant(name: str) -> NoReturn:
        raise CheckpointError(file, "", f"not JSON: {name} is not a number")

    try:
        loaded = json.loads(content, object_pairs_hook=without_duplicates, parse_constant=no_constant)
    except json.JSONDecodeError as error:
        known = file_is(content[:START_BYTES])
        problem = known or f"not JSON: {error.msg}, line {error.lineno} column {error.colno}"
        raise CheckpointError(file, "", problem) from error
    except UnicodeDecodeError as error:
        raise CheckpointError(file, "", file_is(content[:START_BYTES]) or f"not UTF-8: byte {error.start}") from error
    except RecursionError as error:
        raise CheckpointError(file, "", "not usable: nested too deeply") from error
    except CheckpointError:
        raise
    except ValueError as error:  # a whole number of thousands of digits
        raise CheckpointError(file, "", f"not usable: {error}") from error
    if not isinstance(loaded, dict):
        raise CheckpointError(file, "", f"must hold a JSON object, holds {_JSON_NAMES[type(loaded)]}")
    return loaded
