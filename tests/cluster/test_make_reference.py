"""The page of flags and the chart's schema say what the options say, and a changed option is noticed."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

import pytest
import yaml

from expertfleet.attention_workers.config import AttentionConfig
from expertfleet.cluster import make_reference
from expertfleet.cluster.make_reference import CHART, COMMANDS, PAGE, ROOT, SCHEMA, make_page, make_schema
from expertfleet.settings.option import option

VALUES = yaml.safe_load((ROOT / CHART / "values.yaml").read_text())


def test_page_and_schema_are_what_the_options_say() -> None:
    assert make_reference.drifted() == []


@dataclass(frozen=True, kw_only=True)
class Wider(AttentionConfig):
    max_num_seqs: int = option(64, "most sequences in one forward step", group="limits", range=(1, 7), common=True)


@dataclass(frozen=True, kw_only=True)
class Longer(AttentionConfig):
    max_num_seqs: int = option(64, "most sequences in a step", group="limits", range=(1, 1 << 16), common=True)


@dataclass(frozen=True, kw_only=True)
class More(AttentionConfig):
    another: int = option(1, "one more", group="limits", range=(0, 9))


@pytest.mark.parametrize(
    ("changed", "paths"), [(Wider, {str(PAGE), str(SCHEMA)}), (Longer, {str(PAGE)}), (More, {str(PAGE)})]
)
def test_a_changed_option_is_drift(changed: type, paths: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def replaced(configs: tuple[type, ...]) -> tuple[type, ...]:
        return tuple(changed if config is AttentionConfig else config for config in configs)

    commands = {name: replaced(configs) for name, configs in COMMANDS.items()}
    groups = tuple((*place, replaced(configs)) for *place, configs in make_reference._GROUPS)
    monkeypatch.setattr(make_reference, "COMMANDS", commands)
    monkeypatch.setattr(make_reference, "_GROUPS", groups)
    assert set(make_reference.drifted()) == paths
    monkeypatch.setattr("sys.argv", ["make_reference", "--check"])
    with pytest.raises(SystemExit, match=r"options have changed \(run `make reference`\): "):
        make_reference.main()


def test_a_check_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {path: (ROOT / path).read_bytes() for path in (PAGE, SCHEMA)}
    monkeypatch.setattr("sys.argv", ["make_reference", "--check"])
    make_reference.main()
    assert {path: (ROOT / path).read_bytes() for path in kept} == kept


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_a_command_has_one_row_with_help(command: str) -> None:
    section = make_page().split(f"\n## {command}\n")[1].split("\n## ")[0]
    rows = [line.split(" | ") for line in section.splitlines() if line.startswith("| `--")]
    names = [field.name for config in COMMANDS[command] for field in dataclasses.fields(config)]
    assert sorted(row[1].strip("`") for row in rows) == sorted(f"EXPERTFLEET_{name.upper()}" for name in names)
    assert all(len(row) == 5 and row[3] for row in rows)


@pytest.mark.parametrize(
    ("place", "key", "wanted"),
    [
        ("properties/head", "drainSlowFactor", {"type": "number", "minimum": 1.5, "maximum": 1000}),
        ("properties/head", "spareMemory", {"type": ["number", "null"], "minimum": 0, "maximum": 0.95}),
        ("definitions/expertSettings", "threads", {"type": "integer", "minimum": 1, "maximum": 1024}),
        ("properties/lanes", "maxFrameMib", {"type": "integer", "minimum": 1, "maximum": 1024}),
        ("properties/gateway/properties/settings", "onInexact", {"enum": ["fail", "continue", None]}),
        ("properties/gateway/properties/settings", "accessLog", {"type": ["boolean", "null"]}),
    ],
)
def test_a_value_of_the_chart_has_type_and_limits_of_its_option(place: str, key: str, wanted: dict[str, Any]) -> None:
    schema = json.loads((ROOT / SCHEMA).read_text())
    properties = make_reference._at(schema, place)["properties"]
    properties[key] = {"type": "integer", "minimum": 4, "maximum": 5}
    made = json.loads(make_schema(json.dumps(schema), VALUES))
    assert make_reference._at(made, place)["properties"][key] == wanted


def test_a_key_enters_and_leaves_the_schema_with_the_values() -> None:
    place = "properties/gateway/properties/settings"
    values = json.loads(json.dumps(VALUES))
    values["gateway"]["settings"]["adminPort"] = None
    del values["gateway"]["settings"]["retryAfterS"]
    made = json.loads(make_schema((ROOT / SCHEMA).read_text(), values))
    found = make_reference._at(made, place)["properties"]
    assert found["adminPort"] == {"type": ["integer", "null"], "minimum": 0, "maximum": 65535}
    assert "retryAfterS" not in found
    assert set(found) == set(values["gateway"]["settings"])


def test_a_key_that_is_no_option_is_an_error() -> None:
    values = json.loads(json.dumps(VALUES))
    values["gateway"]["settings"]["retryAfterMs"] = 1
    with pytest.raises(SystemExit, match=r"gateway/settings/retryAfterMs: no option retry_after_ms"):
        make_schema((ROOT / SCHEMA).read_text(), values)
