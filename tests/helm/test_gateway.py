"""Gateways: how they are reached, probed, drained and scaled."""

from typing import Any

import fleet_chart as chart
import pytest


def deployment(objects: list[chart.Object]) -> dict[str, Any]:
    return chart.named(objects, "Deployment", "-gateway")["spec"]  # type: ignore[no-any-return]


def container_of(objects: list[chart.Object]) -> chart.Object:
    (container,) = deployment(objects)["template"]["spec"]["containers"]
    return container  # type: ignore[no-any-return]


def test_it_waits_for_the_fleet_once_and_answers_by_itself_ever_after() -> None:
    container = container_of(chart.render("demo", {"gateway": {"startupMinutes": 20}}))
    probes = {name: container[name]["httpGet"]["path"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert probes == {"startupProbe": "/ready", "readinessProbe": "/health", "livenessProbe": "/health"}
    assert container["startupProbe"]["periodSeconds"] * container["startupProbe"]["failureThreshold"] == 20 * 60


def test_waiting_for_the_fleet_is_no_failed_rollout() -> None:
    assert deployment(chart.render("demo", {"gateway": {"startupMinutes": 20}}))["progressDeadlineSeconds"] > 20 * 60


def test_it_is_forgotten_before_it_drains() -> None:
    objects = chart.render("demo", {"gateway": {"preStopS": 7, "settings": {"drainS": 33.5}}})
    assert container_of(objects)["lifecycle"]["preStop"] == {"sleep": {"seconds": 7}}
    assert deployment(objects)["template"]["spec"]["terminationGracePeriodSeconds"] == 7 + 34 + 10


def test_a_new_one_serves_before_an_old_one_goes() -> None:
    assert deployment(chart.render())["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}


def test_it_can_stay_on_its_version_while_the_workers_move() -> None:
    objects = chart.render("demo", {"image": {"tag": "0.2.0"}, "gateway": {"image": {"tag": "0.1.0"}}})
    images = {name.partition("/")[2]: container["image"] for name, container in chart.containers(objects)}
    assert images == {
        "gateway": "expertfleet:0.1.0-cpu",
        **dict.fromkeys(("head", "attention", "expert"), "expertfleet:0.2.0-cpu"),
    }


def test_an_upgrade_in_two_steps_replaces_workers_first_and_gateways_last() -> None:
    """What docs/kubernetes.md has one do: a pod is replaced where its template has changed, and nowhere else."""

    def replaced(before: chart.Values, after: chart.Values) -> set[str]:
        old, new = (dict(chart.pods(chart.render("demo", values))) for values in (before, after))
        return {owner.removeprefix("fleet-expertfleet-") for owner in new if new[owner] != old[owner]}

    first: chart.Values = {"image": {"tag": "0.2.0"}, "gateway": {"image": {"tag": "0.1.0"}}}
    assert replaced({}, first) == {"head", "attention", "expert"}
    assert replaced(first, {"image": {"tag": "0.2.0"}}) == {"gateway"}


def test_digests_go_before_tags() -> None:
    digest = "sha256:" + "a" * 64
    objects = chart.render("demo", {"image": {"digests": {"cpu": digest}}})
    assert container_of(objects)["image"] == f"expertfleet@{digest}"


def test_keys_are_given_only_where_there_are_any() -> None:
    bare = chart.render("demo")
    assert not any("--api-key" in argument for argument in container_of(bare)["args"])
    assert "--open" in container_of(bare)["args"], "as the preset says"
    objects = chart.render("demo", {"apiKeys": {"existingSecret": "fleet-keys", "key": "all", "open": False}})
    assert "--api-key-file=/keys/all" in container_of(objects)["args"]
    assert "--open" not in container_of(objects)["args"]
    # A whole directory: what is mounted by subPath or given as a variable stays as it was when the pod started.
    assert {"name": "keys", "mountPath": "/keys", "readOnly": True} in container_of(objects)["volumeMounts"]
    pod = chart.named(objects, "Deployment", "-gateway")["spec"]["template"]["spec"]
    secret = {"secretName": "fleet-keys", "defaultMode": 0o440}
    assert [volume["secret"] for volume in pod["volumes"] if volume["name"] == "keys"] == [secret]


def test_metrics_and_scale_are_never_on_the_service_of_the_api() -> None:
    values: chart.Values = {"gateway": {"service": {"type": "LoadBalancer", "port": 443, "annotations": {"a": "b"}}}}
    objects = chart.render("demo", values)
    service = chart.named(objects, "Service", "-gateway")
    assert service["metadata"]["annotations"] == {"a": "b"}
    assert service["spec"]["type"] == "LoadBalancer"
    assert service["spec"]["ports"] == [{"name": "http", "port": 443, "targetPort": "http"}]
    admin = chart.named(objects, "Service", "-gateway-admin")["spec"]
    assert admin["type"] == "ClusterIP"
    assert admin["ports"] == [{"name": "admin", "port": 8001, "targetPort": "admin"}]
    assert {port["name"]: port["containerPort"] for port in container_of(objects)["ports"]} == {
        "http": 8000,
        "admin": 8001,
    }


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_both_ports_are_open_on_the_addresses_of_the_family_that_is_named(host: str) -> None:
    arguments = container_of(chart.render("demo", {"gateway": {"host": host}}))["args"]
    assert [f"--host={host}", f"--admin-host={host}"] == [word for word in arguments if "host=" in word]


def test_the_service_has_what_kubernetes_lets_it_have() -> None:
    given = chart.EVERYTHING["gateway"]["service"]
    service = chart.named(chart.render_everything(), "Service", "-gateway")
    (port,) = service["spec"]["ports"]
    assert port["nodePort"] == given["nodePort"]
    for key in set(given) - {"nodePort", "labels"}:
        assert service["spec"][key] == given[key], key
    assert service["metadata"]["labels"]["team"] == "edge", "before that of all objects"
    plain = chart.named(chart.render("demo"), "Service", "-gateway")["spec"]
    assert set(plain) == {"type", "selector", "ports"}


def test_an_ingress_reaches_the_api() -> None:
    assert not chart.of_kind(chart.render(), "Ingress")
    objects = chart.render_everything()
    ingress = chart.named(objects, "Ingress", "-gateway")["spec"]
    assert ingress["ingressClassName"] == "nginx"
    assert ingress["tls"] == [{"secretName": "llm-tls", "hosts": ["llm.example.com"]}]
    (rule,) = ingress["rules"]
    assert rule["host"] == "llm.example.com"
    backend = rule["http"]["paths"][0]["backend"]["service"]
    assert backend == {"name": "fleet-expertfleet-gateway", "port": {"name": "http"}}


def test_it_scales_by_processors_or_by_requests() -> None:
    def metric(**scaling: Any) -> Any:
        objects = chart.render("demo", {"gateway": {"autoscaling": {"enabled": True, **scaling}}})
        assert "replicas" not in deployment(objects)
        (found,) = chart.named(objects, "HorizontalPodAutoscaler", "-gateway")["spec"]["metrics"]
        return found

    assert metric(targetCPUUtilizationPercentage=55)["resource"]["target"]["averageUtilization"] == 55
    by_requests = metric(metric="requests", targetRequests=50)["pods"]
    assert by_requests["metric"]["name"] == "vllm:num_requests_running"
    assert by_requests["target"] == {"type": "AverageValue", "averageValue": "50"}
