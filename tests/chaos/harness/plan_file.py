"""A chaos plan from its TOML file.

Knows nothing of what plans mean: dataclass fields, their types and their own checks are all there is. An unknown key, a wrong
type and a refused value are errors that name file, key and value.
"""

import dataclasses
import difflib
import tomllib
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

from .plan import Plan

T = TypeVar("T")
_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


class PlanError(ValueError):
    """A plan that cannot be run; one line."""


def read_plan(path: Path) -> Plan:
    return read(Plan, path)


def read(kind: type[T], path: Path) -> T:
    """Raises PlanError."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PlanError(f"{path}: not TOML: {error}") from error
    try:
        return _build(kind, table, "")
    except ValueError as error:
        raise PlanError(f"{path}: {error}") from None


def _build(kind: type[T], table: dict[str, Any], prefix: str) -> T:
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(kind)
    for name, value in table.items():
        if name not in fields:
            close = difflib.get_close_matches(name, fields, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(fields)}"
            raise PlanError(f"{prefix}{name}: unknown key, with the value {value!r}; {hint}")
    for name, field in fields.items():
        if name not in table and field.default is dataclasses.MISSING:
            raise PlanError(f"{prefix}{name}: this key is required")
    values = {name: _convert(value, hints[name], f"{prefix}{name}") for name, value in table.items()}
    try:
        return kind(**values)
    except ValueError as error:
        raise PlanError(f"{prefix}{error}") from None


def _convert(value: Any, hint: Any, name: str) -> Any:
    kind, origin = _plain(hint), typing.get_origin(_plain(hint))
    if origin is Literal:
        if value not in typing.get_args(kind):
            raise PlanError(f"{name}: {value!r} is not one of {', '.join(typing.get_args(kind))}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise PlanError(f"{name}: {value!r} is not a list")
        (item_kind, _) = typing.get_args(kind)
        return tuple(_convert(item, item_kind, f"{name}[{index}]") for index, item in enumerate(value))
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise PlanError(f"{name}: {value!r} is not a table")
        return _build(typing.cast("type[Any]", kind), value, f"{name}.")
    accepted = (int, float) if kind is float else (kind,)
    if type(value) not in accepted:
        raise PlanError(f"{name}: {value!r} is not {_NAMES[kind]}")
    return value


def _plain(hint: Any) -> Any:
    """``X`` for ``X | None``."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next(arg for arg in typing.get_args(hint) if arg is not type(None))
    return hint
