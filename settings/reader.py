"""Builds a role's frozen configuration dataclass from a YAML file, the environment and flags, in that order.

Knows nothing of any role: the options of the dataclass are all there is. ``read_file`` parses the YAML file; ``resolve`` lays
file < ``EXPERTFLEET_*`` < flag over the defaults and builds the dataclass, which checks the values. An error names the flag, the
variable or the file that a value came from.
"""

import dataclasses
import difflib
import ipaddress
import os
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from .flags import flag_name, optional, plain, printable

ENV_PREFIX = "EXPERTFLEET_"
MASK = "********"
_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off"}

C = TypeVar("C")


class SettingsError(ValueError):
    """A setting that cannot be used; the message names where it came from, its value and what is allowed."""


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
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for name, source, value in _given(set(hints), flags, environ, file or {}, file_name):
        values[name], sources[name] = convert(value, hints[name], source), source
    missing = [
        flag_name(field.name)
        for field in dataclasses.fields(config)  # type: ignore[arg-type]
        if field.default is dataclasses.MISSING and field.name not in values
    ]
    if missing:
        raise SettingsError(f"missing: {', '.join(missing)}")
    try:
        return config(**values)
    except ValueError as error:
        name, colon, rest = str(error).partition(":")
        raise SettingsError(f"{sources.get(name, name)}{colon}{rest}") from error


def _given(
    names: set[str],
    flags: Mapping[str, Any],
    environ: Mapping[str, str],
    file: Mapping[str, Any],
    file_name: str,
) -> Iterator[tuple[str, str, Any]]:
    """Each value with the option's name and where it comes from; a later one replaces an earlier one."""
    for name, value in file.items():
        if name not in names:
            raise SettingsError(f"{file_name}: unknown setting {name!r}{_nearest(name, names)}")
        yield name, f"{file_name}: {name}", value
    for variable, text in environ.items():
        if variable.startswith(ENV_PREFIX):
            if (name := _setting(variable)) not in names:
                raise SettingsError(f"environment: unknown setting {variable}{_nearest(name, names)}")
            yield name, variable, text
    for name, value in flags.items():
        if name in names:
            yield name, flag_name(name), value


def convert(value: Any, hint: Any, source: str) -> Any:
    """``value`` (text, or a YAML scalar or list) as the type ``hint``."""
    if optional(hint) and (value is None or (isinstance(value, str) and value.lower() in {"", "none", "null"})):
        return None
    kind = plain(hint)
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
            shown[field.name] = printable(value)
    return shown


def write_file(config: Any, path: Path) -> None:
    """What ``read_file`` and ``resolve`` make the same configuration of; secrets included, so it is for this user alone."""
    values = {field.name: printable(getattr(config, field.name)) for field in dataclasses.fields(config)}
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        yaml.safe_dump(values, file)


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


def _nearest(name: str, names: set[str]) -> str:
    close = difflib.get_close_matches(name, sorted(names), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
