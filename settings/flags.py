"""Command-line flags of a configuration dataclass, grouped as its options are, and the command line that rebuilds one.

Knows nothing of any role. A flag's value stays text here; ``reader.resolve`` converts it.
"""

import argparse
import dataclasses
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from .help_formatter import HelpFormatter
from .option import GROUPS


def flag_name(name: str) -> str:
    return "--" + name.replace("_", "-")


def add_flags(parser: argparse.ArgumentParser, *configs: type, positional: str = "") -> None:
    """Adds one flag per option, group by group, common ones first; absent flags stay out of the namespace."""
    parser.formatter_class = HelpFormatter
    parser.usage = " ".join(["%(prog)s [OPTION ...]", *([positional] if positional else [])])
    for title, options in grouped(*configs):
        group = parser.add_argument_group(title)
        for field, hint in options:
            group.add_argument(flag_name(field.name), **_argument(field, hint))


def grouped(*configs: type) -> Iterator[tuple[str, list[tuple["dataclasses.Field[Any]", Any]]]]:
    """Of each group that is not empty the options and their types, common ones first."""
    hints = [
        (field, typing.get_type_hints(config)[field.name]) for config in configs for field in dataclasses.fields(config)
    ]
    for group in GROUPS:
        options = [each for each in hints if each[0].metadata["group"] == group]
        if options:
            yield group, sorted(options, key=lambda each: not each[0].metadata["common"])


def to_flags(config: Any) -> list[str]:
    """The command line that rebuilds ``config`` through ``add_flags`` and ``resolve``; secrets are left out."""
    flags: list[str] = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value is None or field.metadata.get("secret"):
            continue
        if isinstance(value, bool):
            flags.append(flag_name(field.name) if value else "--no-" + field.name.replace("_", "-"))
        elif isinstance(value, tuple):
            flags += [flag_name(field.name), *map(str, value)] if value else []
        else:
            flags.append(f"{flag_name(field.name)}={value}")
    return flags


def default_text(field: "dataclasses.Field[Any]") -> str:
    """The default as a user would write it; empty where the help says what happens without the flag."""
    if field.default is dataclasses.MISSING:
        return "required"
    if isinstance(field.default, bool):
        return "yes" if field.default else "no"
    if isinstance(field.default, float):
        return f"{field.default:g}"
    return "" if field.default in (None, (), "") else str(field.default)


def plain(hint: Any) -> Any:
    """``X`` for ``X | None``."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next(arg for arg in typing.get_args(hint) if arg is not type(None))
    return hint


def optional(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType) and type(None) in typing.get_args(hint)


def printable(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _argument(field: "dataclasses.Field[Any]", hint: Any) -> dict[str, Any]:
    shared = {"dest": field.name, "default": argparse.SUPPRESS, "help": _help(field)}
    kind = plain(hint)
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction, **shared}
    if typing.get_origin(kind) is tuple:
        return {"nargs": "+", "metavar": _value_name(typing.get_args(kind)[0]), **shared}
    return {"metavar": _value_name(kind), **shared}


def _value_name(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "|".join(map(str, typing.get_args(kind)))
    return {int: "N", float: "N", Path: "PATH"}.get(kind, "TEXT")


def _help(field: "dataclasses.Field[Any]") -> str:
    default = default_text(field)
    shown = default if default in ("", "required") else f"default: {default}"
    text: str = field.metadata["help"]
    return (f"{text} ({shown})" if shown else text).replace("%", "%%")
