"""Writes what repeats the roles' options: ``docs/flags.md``, and their part of ``helm/expertfleet/values.schema.json``.

``python -m expertfleet.cluster.make_reference [--check]``. Knows nothing of any one option. Which options the chart has says its
``values.yaml``: a key is an option's name in camelCase; a key that the schema does not require may be null, which leaves its flag out.
"""

import argparse
import json
import re
import sys
import typing
from dataclasses import Field
from pathlib import Path
from typing import Any, Literal

import yaml

from ..attention_workers.config import AttentionConfig
from ..expert_workers.config import ExpertConfig
from ..gateway.config import GatewayConfig
from ..settings.flags import default_text, flag_name, grouped, plain
from ..settings.reader import ENV_PREFIX
from .commands.config import FleetConfig
from .commands.head import HeadConfig
from .commands.node import NodeConfig

ROOT = Path(__file__).resolve().parent.parent
PAGE, CHART = Path("docs/flags.md"), Path("helm/expertfleet")
SCHEMA = CHART / "values.schema.json"
COMMANDS: dict[str, tuple[type, ...]] = {
    "expertfleet serve": (FleetConfig,),
    "expertfleet head": (HeadConfig,),
    "expertfleet node attention": (NodeConfig, AttentionConfig),
    "expertfleet node expert": (NodeConfig, ExpertConfig),
    "expertfleet gateway": (GatewayConfig,),
}
# Values whose keys are options: where they lie, where the schema has them, and what says which are required.
_GROUPS: tuple[tuple[str, str, str, tuple[type, ...]], ...] = (
    ("lanes", "properties/lanes", "properties/lanes", (FleetConfig, AttentionConfig)),
    ("head", "properties/head", "properties/head", (HeadConfig,)),
    (
        "attention/settings",
        "properties/attention/properties/settings",
        "properties/attention/properties/settings",
        (NodeConfig, AttentionConfig),
    ),
    (
        "expertShards/settings",
        "definitions/expertSettings",
        "properties/expertShards/allOf/1/properties/settings",
        (NodeConfig, ExpertConfig),
    ),
    (
        "gateway/settings",
        "properties/gateway/properties/settings",
        "properties/gateway/properties/settings",
        (GatewayConfig,),
    ),
)
# Single values that are an option under another name: where the schema has them, and whether they may be null.
_SINGLE: tuple[tuple[str, str, bool, type, str], ...] = (
    ("properties", "dtype", False, HeadConfig, "dtype"),
    ("properties", "expertReplicas", False, HeadConfig, "replicas"),
    ("properties/model/properties", "maxModelLen", True, AttentionConfig, "max_model_len"),
)
_WIDTH = 120
_INTRO = """# Flags

One table for each command and group of its options. `make reference` writes this page from the dataclasses that hold the
options, and `make check` fails where it differs. A setting comes from `--config FILE.yaml` (`serve` and `gateway`; a key is the
flag's name without its dashes at the front), then from the environment variable, then from the flag; an unknown one is an error.
`python -m expertfleet.attention_workers` and `python -m expertfleet.expert_workers`, a worker without Ray, take the options of
`node attention` and `node expert` without `--head`, `--leave-s`, `--ready-file`, `--if-taken` and `--head-wait-s`. The flags of
all other commands are in their `--help`.
"""


def make_page() -> str:
    lines = [_INTRO]
    for command, configs in COMMANDS.items():
        lines.append(f"## {command}\n")
        for group, options in grouped(*configs):
            lines += [
                f"### {command.removeprefix('expertfleet ')}: {group}\n",
                "| flag | variable | default | meaning | range |",
            ]
            lines += ["|---|---|---|---|---|", *(_row(field, hint) for field, hint in options), ""]
    return "\n".join(lines)


def make_schema(schema_text: str, values: dict[str, Any]) -> str:
    """The schema with the options that ``values`` has; all else stays as ``schema_text`` says."""
    schema = json.loads(schema_text)
    for place, target, required, configs in _GROUPS:
        properties, must = _at(schema, target)["properties"], _at(schema, required).get("required", [])
        options = _options(*configs)
        for key, default in _at(values, place).items():
            if not isinstance(default, dict):
                if _snake(key) not in options:
                    sys.exit(f"{CHART}/values.yaml: {place}/{key}: no option {_snake(key)}")
                properties[key] = _type(*options[_snake(key)], is_nullable=key not in must)
        for key in [key for key in properties if key not in _at(values, place) and _snake(key) in options]:
            del properties[key]
    for place, key, is_nullable, config, name in _SINGLE:
        _at(schema, place)[key] = _type(*_options(config)[name], is_nullable=is_nullable)
    return _dump(schema, 0, 0) + "\n"


def fresh() -> dict[Path, str]:
    """The text of each file as the options have it."""
    values = yaml.safe_load((ROOT / CHART / "values.yaml").read_text())
    return {PAGE: make_page(), SCHEMA: make_schema((ROOT / SCHEMA).read_text(), values)}


def drifted() -> list[str]:
    return [
        str(path) for path, text in fresh().items() if not (ROOT / path).exists() or (ROOT / path).read_text() != text
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m expertfleet.cluster.make_reference")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a file differs from the options")
    if parser.parse_args().check:
        if names := drifted():
            sys.exit(f"options have changed (run `make reference`): {', '.join(names)}")
        return
    for path, text in fresh().items():
        (ROOT / path).write_text(text)


def _row(field: Field[Any], hint: Any) -> str:
    flag = flag_name(field.name)
    shown = f"`{flag}`, `--no-{flag[2:]}`" if plain(hint) is bool else f"`{flag}`"
    default = default_text(field)
    cells = (shown, f"`{ENV_PREFIX}{field.name.upper()}`", default, field.metadata["help"], _limits(field, hint))
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _limits(field: Field[Any], hint: Any) -> str:
    if typing.get_origin(plain(hint)) is Literal:
        return ", ".join(typing.get_args(plain(hint)))
    if (limits := field.metadata["range"]) is None:
        return ""
    return f"{'0, or ' if field.metadata['zero'] else ''}{limits[0]} to {limits[1]}"


def _options(*configs: type) -> dict[str, tuple[Field[Any], Any]]:
    """Of two options of one name the first configuration's."""
    found = [(field, hint) for config in reversed(configs) for _, options in grouped(config) for field, hint in options]
    return {field.name: (field, hint) for field, hint in found}


def _snake(key: str) -> str:
    return re.sub("([A-Z])", r"_\1", key).lower()


def _type(field: Field[Any], hint: Any, *, is_nullable: bool) -> dict[str, Any]:
    """JSON schema of one option."""
    kind = plain(hint)
    if typing.get_origin(kind) is Literal:
        return {"enum": [*typing.get_args(kind), *([None] if is_nullable else [])]}
    name = {bool: "boolean", int: "integer", float: "number"}.get(kind, "string")
    found: dict[str, Any] = {"type": [name, "null"] if is_nullable else name}
    if pattern := field.metadata["pattern"]:
        found["pattern"] = f"^({pattern})$"
    if (limits := field.metadata["range"]) is not None:
        low, high = limits
        found |= (
            {"minimum": 0, "anyOf": [{"const": 0}, {"minimum": low}]} if field.metadata["zero"] else {"minimum": low}
        )
        found["maximum"] = high
    return found


def _at(document: Any, place: str) -> Any:
    for part in place.split("/"):
        document = document[int(part)] if isinstance(document, list) else document[part]
    return document


def _dump(value: Any, indent: int, taken: int) -> str:
    """JSON with every object and list on one line that has room there; ``taken`` is what stands on its line already."""
    line = json.dumps(value, ensure_ascii=False)
    if not value or not isinstance(value, (dict, list)) or taken + len(line) < _WIDTH:
        return line
    pad = " " * (indent + 2)
    named = value.items() if isinstance(value, dict) else (("", each) for each in value)
    parts = (
        _part(f"{pad}{json.dumps(key)}: " if isinstance(value, dict) else pad, each, indent + 2) for key, each in named
    )
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return f"{opening}\n{f',{chr(10)}'.join(parts)}\n{' ' * indent}{closing}"


def _part(before: str, value: Any, indent: int) -> str:
    return before + _dump(value, indent, len(before))


if __name__ == "__main__":
    main()
