"""values.yaml and its schema say the same, every level is closed and every value explained."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fleet_chart as chart
import pytest
import yaml

DEFAULTS: chart.Values = yaml.safe_load((chart.CHART / "values.yaml").read_text())
SCHEMA: dict[str, Any] = json.loads((chart.CHART / "values.schema.json").read_text())
# Maps whose keys are the user's, and lists.
FREE = {
    *("nodeSelector", "podLabels", "podAnnotations", "commonLabels", "commonAnnotations", "annotations", "labels"),
    *("selector", "expertGroups", "affinity", "dnsConfig"),
}
# Explained as a whole.
WHOLE = {"resources", "labels", "topologySpreadConstraints", "securityContext"}
# What Kubernetes' own things have that no default names.
UNSAID = {
    "requests": {"ephemeral-storage"},
    "limits": {"ephemeral-storage"},
    "securityContext": {
        *("privileged", "procMount", "runAsUser", "runAsGroup", "runAsNonRoot"),
        *("seccompProfile", "appArmorProfile", "seLinuxOptions"),
    },
    "capabilities": {"add"},
}
# Keys that every role may say for itself, explained once at the top level.
POD = {
    *("podLabels", "podAnnotations", "nodeSelector", "tolerations", "affinity", "topologySpreadConstraints"),
    *("priorityClassName", "runtimeClassName", "schedulerName", "podSecurityContext", "securityContext"),
    *("env", "envFrom", "volumes", "volumeMounts", "initContainers", "containers"),
    *("hostAliases", "dnsPolicy", "dnsConfig"),
}
ROLES = {("head",), ("attention",), ("expertShards",), ("gateway",), ("model", "pull")}


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema or "allOf" in schema:
        schema = schema["allOf"][0] if "allOf" in schema else SCHEMA["definitions"][schema["$ref"].rpartition("/")[2]]
    return schema


def levels(schema: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Every object of the schema with properties of its own."""
    schema = resolved(schema)
    if "array" in schema.get("type", ""):
        yield from levels(schema["items"], (*path, "0"))
    if "properties" in schema:
        yield path, schema
        for key, inner in schema["properties"].items():
            yield from levels(inner, (*path, key))
    for inner in schema.get("patternProperties", {}).values():
        yield from levels(inner, (*path, "gpu"))


def default_levels(values: chart.Values, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], chart.Values]]:
    yield path, values
    for key, value in values.items():
        if isinstance(value, dict) and key not in FREE:
            yield from default_levels(value, (*path, key))


def test_every_level_is_closed() -> None:
    found = list(levels(SCHEMA))
    assert len(found) > 50
    for path, schema in found:
        assert schema["additionalProperties"] is False, ".".join(path)


def test_schema_and_defaults_have_the_same_keys() -> None:
    known = {path: set(schema["properties"]) for path, schema in levels(SCHEMA)}
    for path, values in default_levels(DEFAULTS):
        unsaid = UNSAID.get(path[-1], set()) if path else {"global", "podSecurityContext"}
        if path in ROLES:
            unsaid = POD - ({"containers"} if path == ("model", "pull") else set())
            assert unsaid <= known[path], ".".join(path)
        assert known[path] - unsaid == set(values), ".".join(path)


def test_every_role_takes_the_same_keys_as_all_together() -> None:
    assert set(SCHEMA["properties"]) >= POD
    assert set(DEFAULTS) >= POD - {"podSecurityContext"}, "which a default would keep from being taken away"
    for key in POD:
        wanted = SCHEMA["properties"][key]
        for path, schema in levels(SCHEMA):
            if path in ROLES and (path, key) != (("model", "pull"), "containers"):
                assert schema["properties"][key] == wanted, f"{path}: {key}"


def test_every_value_is_explained() -> None:
    lines = (chart.CHART / "values.yaml").read_text().splitlines()
    explained, depth_of_whole = False, None
    missing = []
    for line in lines:
        if not line.strip():
            continue
        depth = len(line) - len(line.lstrip())
        if depth_of_whole is not None and depth > depth_of_whole:
            continue
        depth_of_whole = None
        if line.lstrip().startswith("#"):
            explained |= line.lstrip().startswith("# -- ")
            continue
        key, _, value = line.strip().partition(":")
        if key in WHOLE:
            depth_of_whole = depth
        if value and not explained:
            missing.append(line)
        explained = False
    assert not missing


def test_numbers_have_limits() -> None:
    for path, schema in levels(SCHEMA):
        for key, inner in schema["properties"].items():
            kind = resolved(inner).get("type")
            if kind is not None and {"integer", "number"} & set([kind] if isinstance(kind, str) else kind):
                assert "minimum" in resolved(inner), f"{'.'.join(path)}.{key}"


def blank(values: chart.Values, preset: chart.Values) -> chart.Values:
    """null for all that says nothing by default, where the preset says nothing either."""
    found: chart.Values = {}
    for key, value in values.items():
        said = preset.get(key)
        if isinstance(value, dict) and value:
            if inner := blank(value, said or {}):
                found[key] = inner
        elif value in ("", [], {}) and not said:
            found[key] = None
    return found


@pytest.mark.parametrize("version", chart.HELMS)
@pytest.mark.parametrize("preset", chart.PRESETS)
def test_a_key_left_blank_says_nothing(preset: str, version: str) -> None:
    """As `nodeSelector:` alone on its line, or `--set tolerations=null`."""
    given = yaml.safe_load(Path(chart.preset_file(preset)).read_text())
    nothing = blank(DEFAULTS, given)
    assert {"nodeSelector", "env", "imagePullSecrets", "commonLabels", "expertGroups"} - set(given) <= set(nothing)
    assert {"ipFamilies", "labels"} <= set(nothing["gateway"]["service"])
    assert chart.render(preset, nothing, version=version) == chart.render(preset, version=version)


def test_no_preset_repeats_a_default_or_names_a_secret() -> None:
    for preset in chart.PRESETS:
        text = (chart.CHART / f"values-{preset}.yaml").read_text()
        given = yaml.safe_load(text)
        assert chart.over(DEFAULTS, given) != DEFAULTS
        assert not re.search(r"[0-9a-f]{32}", text)
