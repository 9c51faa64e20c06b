"""Builds a role's frozen configuration dataclass from a YAML file, the environment and flags, in that order.

Knows nothing of any role: a field's name, type, default and ``metadata`` are all there is.
1. ``add_flags`` turns every field into a ``--flag``; 2. ``read_file`` parses the YAML file; 3. ``resolve``
lays file < ``EXPERTFLEET_*`` < flag over the defaults and builds the dataclass, whose ``__post_init__`` checks values.
Field metadata: ``help`` (one line), ``secret`` (masked by ``masked``), ``flag`` (False: not settable by flag).
"""

import argparse
import dataclasses
import difflib
import ipaddress
import os
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

ENV_PREFIX = "EXPERTFLEET_"
MASK = "********"
_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off"}

C = TypeVar("C")


class SettingsError(ValueError):
    """A setting that cannot be used; the message names where it came from, its value and what is allowed."""


def option(default: Any = dataclasses.MISSING, help: str = "", *, secret: bool = False, flag: bool = True) -> Any:
    """A dataclass field with a help line; lists and dicts are not allowed as defaults (use tuples)."""
    return dataclasses.field(default=default, metadata={"help": help, "secret": secret, "flag": flag})


def check_address(name: str, address: str) -> None:
    """Raises ValueError, naming the setting, for what is not HOST:PORT."""
    host, _, port = address.rpartition(":")
    is_bracketed = host.startswith("[") and host.endswith("]")
    is_host = _is_ipv6(host[1:-1]) if is_bracketed else ":" not in host and _is_host(host)
    if not is_host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ValueError(f"{name}: {address!r} is not HOST:PORT with a port from 1 to 65535 (IPv6: [HOST]:PORT)")


def check_host(name: str, host: str) -> None:
    """Raises ValueError, naming the setting, for what is neither an address nor a name of a machine."""
    if not _is_host(host):
        raise ValueError(
            f"{name}: {host!r} is neither an address nor a host's name (IPv6 stands without brackets, a port apart)"
        )


def check_seat(seat: str, role: str, most: int = 999_999_999) -> None:
    """Raises ValueError for what is not ROLE-N with N up to ``most``."""
    ordinal = seat.removeprefix(f"{role}-")
    is_number = ordinal != seat and ordinal.isdecimal() and len(ordinal) < 10 and ordinal == str(int(ordinal))
    if not is_number or int(ordinal) > most:
        raise ValueError(f"seat: {seat!r} is not {role}-N, N from 0 to {most}")


def within(name: str, value: float, low: float, high: float) -> None:
    """For ``__post_init__``. Raises ValueError naming the setting, its value and the limits."""
    if not low <= value <= high:
        shown = f"{value:g}" if isinstance(value, float) else value
        raise ValueError(f"{name}: {shown} is not within {low} to {high}")


def flag_name(name: str) -> str:
    return "--" + name.replace("_", "-")


def add_flags(parser: argparse.ArgumentParser, config: type) -> None:
    """Adds one flag per field; absent flags stay out of the namespace."""
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        if not field.metadata.get("flag", True):
            continue
        kind = _plain(hints[field.name])
        shared: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS, "help": _help(field)}
        if kind is bool:
            parser.add_argument(flag_name(field.name), action=argparse.BooleanOptionalAction, **shared)
        elif typing.get_origin(kind) is tuple:
            parser.add_argument(flag_name(field.name), nargs="+", metavar=field.name.upper(), **shared)
        else:
            parser.add_argument(flag_name(field.name), metavar=field.name.upper(), **shared)


def read_file(path: Path) -> dict[str, Any]:
    """The YAML mapping in ``path``; an empty file is an empty mapping."""
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"--config {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"--config {path}: not YAML: {' '.join(str(error).split())}") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise SettingsError(f"--config {path}: must hold a mapping of settings, holds a {type(loaded).__name__}")
    return {str(key).replace("-", "_"): value for key, value in loaded.items()}


def shares(configs: Sequence[type], environ: Mapping[str, str]) -> list[dict[str, str]]:
    """For a process with several configurations: what of ``environ`` each takes. What none knows is an error."""
    names = [{field.name for field in dataclasses.fields(config)} for config in configs]
    ours = {variable: text for variable, text in environ.items() if variable.startswith(ENV_PREFIX)}
    for variable in ours:
        if not any(_setting(variable) in each for each in names):
            raise SettingsError(
                f"environment: unknown setting {variable}{_nearest(_setting(variable), set().union(*names))}"
            )
    return [{variable: text for variable, text in ours.items() if _setting(variable) in each} for each in names]


def resolve(
    config: type[C],
    *,
    flags: Mapping[str, Any],
    environ: Mapping[str, str],
    file: Mapping[str, Any] | None = None,
    file_name: str = "config file",
) -> C:
    """Builds ``config`` from file < environment < flags; an unknown key of the file or the environment is an error."""
    hints = typing.get_type_hints(config)
    names = {field.name for field in dataclasses.fields(config)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name, value in (file or {}).items():
        if name not in names:
            raise SettingsError(f"{file_name}: unknown setting {name!r}{_nearest(name, names)}")
        values[name] = convert(value, hints[name], f"{file_name}: {name}")
    for variable, text in environ.items():
        if not variable.startswith(ENV_PREFIX):
            continue
        name = _setting(variable)
        if name not in names:
            raise SettingsError(f"environment: unknown setting {variable}{_nearest(name, names)}")
        values[name] = convert(text, hints[name], variable)
    for name, value in flags.items():
        if name in names:
            values[name] = convert(value, hints[name], flag_name(name))
    missing = [
        flag_name(field.name)
        for field in dataclasses.fields(config)  # type: ignore[arg-type]
        if field.default is dataclasses.MISSING and field.name not in values
    ]
    if missing:
        raise SettingsError(f"missing: {', '.join(missing)}")
    try:
        return config(**values)
    except SettingsError:
        raise
    except ValueError as error:
        raise SettingsError(str(error)) from error


def convert(value: Any, hint: Any, source: str) -> Any:
    """``value`` (text, or a YAML scalar or list) as the type ``hint``."""
    if _optional(hint) and (value is None or (isinstance(value, str) and value.lower() in {"", "none", "null"})):
        return None
    kind = _plain(hint)
    origin = typing.get_origin(kind)
    if origin is Literal:
        choices = typing.get_args(kind)
        if value not in choices:
            raise SettingsError(f"{source}: {value!r} is not one of {', '.join(map(str, choices))}")
        return value
    if origin is tuple:
        items = [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value
        if not isinstance(items, Sequence):
            raise SettingsError(f"{source}: {value!r} is not a list")
        return tuple(convert(item, typing.get_args(kind)[0], source) for item in items)
    if kind is bool:
        return _to_bool(value, source)
    if kind is Path:
        return Path(str(value)).expanduser()
    if kind in (int, float):
        return _to_number(value, kind, source)
    if isinstance(value, (dict, list, bool)):
        raise SettingsError(f"{source}: {value!r} is not text")
    return str(value)


def masked(config: Any) -> dict[str, Any]:
    """The configuration as plain values for printing, secrets masked."""
    shown: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.metadata.get("secret") and value:
            shown[field.name] = MASK
        elif dataclasses.is_dataclass(value):
            shown[field.name] = masked(value)
        else:
            shown[field.name] = _printable(value)
    return shown


def write_file(config: Any, path: Path) -> None:
    """What ``read_file`` and ``resolve`` make the same configuration of; secrets included, so it is for this user alone."""
    values = {field.name: _printable(getattr(config, field.name)) for field in dataclasses.fields(config)}
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        yaml.safe_dump(values, file)


def to_flags(config: Any) -> list[str]:
    """The command line that rebuilds ``config`` through ``add_flags`` and ``resolve``; secrets are left out."""
    flags: list[str] = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value is None or field.metadata.get("secret") or not field.metadata.get("flag", True):
            continue
        if isinstance(value, bool):
            flags.append(flag_name(field.name) if value else "--no-" + field.name.replace("_", "-"))
        elif isinstance(value, tuple):
            flags += [flag_name(field.name), *map(str, value)] if value else []
        else:
            flags.append(f"{flag_name(field.name)}={value}")
    return flags


def _is_host(text: str) -> bool:
    return _is_ipv6(text) if ":" in text else bool(text) and not re.search(r"[\s,/\[\]]", text)


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _setting(variable: str) -> str:
    return variable.removeprefix(ENV_PREFIX).lower()


def _to_bool(value: Any, source: str) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).lower()
    if text not in _TRUE | _FALSE:
        raise SettingsError(f"{source}: {value!r} is not true or false")
    return text in _TRUE


def _to_number(value: Any, kind: type, source: str) -> int | float:
    try:
        if isinstance(value, bool):
            raise ValueError
        number = float(value) if kind is float else int(str(value))
    except (TypeError, ValueError):
        raise SettingsError(f"{source}: {value!r} is not {'a number' if kind is float else 'a whole number'}") from None
    return number


def _plain(hint: Any) -> Any:
    """``X`` for ``X | None``."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next(arg for arg in typing.get_args(hint) if arg is not type(None))
    return hint


def _optional(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType) and type(None) in typing.get_args(hint)


def _help(field: "dataclasses.Field[Any]") -> str:
    text = str(field.metadata.get("help", "")).replace("%", "%%")
    if field.default in (dataclasses.MISSING, None, (), ""):
        return text
    return f"{text} (default: {_printable(field.default)})".replace("%%", "%").replace("%", "%%")


def _printable(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _nearest(name: str, names: set[str]) -> str:
    close = difflib.get_close_matches(name, sorted(names), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
