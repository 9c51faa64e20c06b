"""Prometheus finds the gateways, and every panel of the dashboard asks for a metric that there is."""

import ast
import json
import re
from typing import Any

import fleet_chart as chart

from expertfleet.gateway.http.metrics import Metrics
from expertfleet.proto.generated import membership_pb2 as pb

REPORTERS = ("attention_workers/server.py", "expert_workers/server.py")


def reported_names() -> set[str]:
    """What workers report, read from their code: the keys of the maps called ``metrics``."""
    names = set()
    for path in REPORTERS:
        for node in ast.walk(ast.parse((chart.ROOT / path).read_text())):
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "metrics":
                assert isinstance(node.value, ast.Dict)
                names |= {ast.literal_eval(key) for key in node.value.keys if key is not None}
    return names


def exported() -> dict[str, set[str]]:
    """Every series that a gateway shows, with its labels."""
    metrics = Metrics("nano-k2")
    watch = metrics.watch("nano-k2", 3)
    watch.start()
    watch.tokens(0, 1)
    watch.tokens(0, 1)
    watch.end(["stop"])
    metrics.http.labels("GET", "/", "200").inc()
    worker = pb.WorkerStatus(seat="expert-0", role="expert", state="ready")
    for name in reported_names():
        worker.report.metrics[name] = 1.0
    text = metrics.text(pb.FleetStatus(workers=[worker], wanted_expert_shards=2), is_current=True).decode()
    series = re.findall(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? ", text, re.MULTILINE)
    return {name: set(re.findall(r'(\w+)="', labels)) for name, labels in series}


def dashboard() -> Any:
    objects = chart.render("demo", {"metrics": {"dashboard": {"enabled": True}}})
    made = chart.named(objects, "ConfigMap", "-dashboard")
    assert made["metadata"]["labels"]["grafana_dashboard"] == "1"
    return json.loads(made["data"]["expertfleet.json"])


def expressions() -> list[str]:
    return [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", ())]


def asked(text: str) -> set[str]:
    """The series of an expression: every name but functions, labels and what stands in braces or quotes."""
    bare = re.sub(r'\{[^}]*\}|\[[^]]*\]|"[^"]*"|\b(?:by|without) *\([^)]*\)', "", text)
    return {name for name, call in re.findall(r"([a-zA-Z_:][\w:]*)( *\()?", bare) if not call and name != "by"}


def test_every_panel_asks_for_metrics_that_there_are() -> None:
    names = {name for text in expressions() for name in asked(text)}
    assert len(names) > 20
    assert names <= set(exported())


def test_panels_group_by_labels_that_those_metrics_have() -> None:
    known = exported()
    for text in expressions():
        labels = {label for found in re.findall(r"by \(([^)]*)\)", text) for label in re.split(r",\s*", found)}
        for name in asked(text):
            assert labels <= known[name], text


def test_metrics_that_the_values_and_the_page_name_are_there() -> None:
    named = {
        name
        for path in ("docs/kubernetes.md", "helm/expertfleet/values.yaml")
        for name in re.findall(r"\b(?:expertfleet_|vllm:)\w+", (chart.ROOT / path).read_text())
    }
    assert {"expertfleet_wanted_expert_shards", "vllm:num_requests_running", "expertfleet_up"} <= named
    assert named <= set(exported())


def test_a_metric_that_is_not_there_is_noticed() -> None:
    assert asked('sum(rate(a_total{b="c"}[2m])) by (d) / max by (e, f) (g) > 0') == {"a_total", "g"}


def test_panels_have_ids_and_places_of_their_own() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(places)) == len(places)
    assert max(x for x, _ in places) < 24


def test_what_every_gateway_shows_is_not_counted_twice() -> None:
    for text in expressions():
        for name in re.findall(r"expertfleet_\w+", text):
            assert re.search(rf"max by \([a-z, ]+\) \((deriv\()?{name}\{{", text), text


def test_prometheus_operator_finds_the_admin_service_alone() -> None:
    objects = chart.render_everything()
    (monitor,) = chart.of_kind(objects, "ServiceMonitor")
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    found = [
        service for service in chart.of_kind(objects, "Service") if wanted <= service["metadata"]["labels"].items()
    ]
    assert [service["metadata"]["name"] for service in found] == ["fleet-expertfleet-gateway-admin"]
    (endpoint,) = monitor["spec"]["endpoints"]
    assert (endpoint["port"], endpoint["path"]) == (found[0]["spec"]["ports"][0]["name"], "/metrics")
    assert set(monitor["spec"]) == {"selector", "targetLabels", "endpoints"}


def test_monitoring_is_off_by_default() -> None:
    assert not {"ServiceMonitor", "ConfigMap"} & {thing["kind"] for thing in chart.render()}
