"""Both Helms render every preset alike, and Kubernetes' own schemas accept every object."""

import re
import shutil
from pathlib import Path

import fleet_chart as chart
import kubernetes_validate
import pytest
import yaml

WITHOUT_SCHEMA = {"ServiceMonitor"}


@pytest.mark.parametrize("preset", chart.PRESETS)
@pytest.mark.parametrize("version", chart.HELMS)
def test_lint_finds_nothing(version: str, preset: str) -> None:
    done = chart.run_helm(version, "lint", "--strict", str(chart.CHART), "--values", chart.preset_file(preset))
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_binaries_are_of_both_versions() -> None:
    for version in chart.HELMS:
        assert chart.run_helm(version, "version", "--short").stdout.startswith(f"v{version}.")


@pytest.mark.parametrize("preset", chart.PRESETS)
def test_both_helms_render_the_same(preset: str) -> None:
    assert chart.render(preset, version="3") == chart.render(preset, version="4")


def test_both_helms_render_everything_alike() -> None:
    assert chart.render_everything("3") == chart.render_everything("4")


def objects_of(preset: str) -> list[chart.Object]:
    return chart.render_everything() if preset == "everything" else chart.render(preset)


@pytest.mark.parametrize("kubernetes", chart.KUBERNETES)
@pytest.mark.parametrize("preset", [*chart.PRESETS, "everything"])
def test_kubernetes_schemas_accept_every_object(preset: str, kubernetes: str) -> None:
    for thing in objects_of(preset):
        if thing["kind"] not in WITHOUT_SCHEMA:
            kubernetes_validate.validate(thing, kubernetes, strict=True)


def test_kubernetes_schemas_refuse_a_field_that_is_not_there() -> None:
    service = chart.named(chart.render(), "Service", "-head")
    service["spec"]["publishNotReady"] = True
    with pytest.raises(kubernetes_validate.ValidationError, match="publishNotReady"):
        kubernetes_validate.validate(service, chart.KUBERNETES[-1], strict=True)


def test_the_oldest_kubernetes_is_the_one_that_the_chart_names() -> None:
    wanted = yaml.safe_load((chart.CHART / "Chart.yaml").read_text())["kubeVersion"]
    assert wanted == f">={chart.KUBERNETES[0]}.0-0"
    older = chart.template("4", "demo", None, "--kube-version", "1.29.0")
    assert older.returncode != 0
    assert "1.29.0" in older.stderr
    assert chart.render("demo", None, "--kube-version", f"{chart.KUBERNETES[0]}.0") == chart.render("demo")


def test_every_template_says_something() -> None:
    done = chart.template("4", "k2-hybrid", chart.EVERYTHING, *chart.PROMETHEUS)
    said = set(re.findall(r"^# Source: expertfleet/templates/(\S+)$", done.stdout, re.MULTILINE))
    written = {path.name for path in (chart.CHART / "templates").glob("*.yaml")}
    assert said == written - {"checks.yaml"}


def test_no_two_objects_have_one_name() -> None:
    names = [(thing["kind"], thing["metadata"]["name"]) for thing in chart.render_everything()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("version", chart.HELMS)
def test_it_can_be_a_part_of_another_chart(version: str, tmp_path: Path) -> None:
    (tmp_path / "charts").mkdir()
    shutil.copytree(chart.CHART, tmp_path / "charts" / "expertfleet")
    dependency = {"name": "expertfleet", "version": "0.1.0"}
    parent = {"apiVersion": "v2", "name": "parent", "version": "1.0.0", "dependencies": [dependency]}
    (tmp_path / "Chart.yaml").write_text(yaml.safe_dump(parent))
    values = yaml.safe_load(Path(chart.preset_file("demo")).read_text())
    (tmp_path / "values.yaml").write_text(yaml.safe_dump({"global": {"a": {"b": "c"}}, "expertfleet": values}))
    done = chart.run_helm(version, "template", "fleet", str(tmp_path), "--namespace", "serving")
    assert done.returncode == 0, done.stderr
    assert chart.read_objects(done.stdout) == chart.render("demo", version=version)


def test_a_null_is_found_at_any_depth() -> None:
    """Kubernetes' schemas let it through, even strictly."""
    budget = chart.named(chart.render(), "PodDisruptionBudget", "-gateway")
    for place in ({"selector": None}, {"maxUnavailable": None}, {"selector": {"matchLabels": {"a": None}}}):
        spoilt = {**budget, "spec": {**budget["spec"], **place}}
        with pytest.raises(AssertionError, match=r"^null: PodDisruptionBudget \.spec\."):
            chart.read_objects(yaml.safe_dump(spoilt))
    kubernetes_validate.validate({**budget, "spec": {"selector": None}}, chart.KUBERNETES[-1], strict=True)
    with pytest.raises(AssertionError, match=r"List \.items\.1\.a$"):
        chart.read_objects(yaml.safe_dump({"kind": "List", "items": [{}, {"a": None}]}))
