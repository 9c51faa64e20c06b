"""Attention workers and groups of expert shards: seats, who owns their number, how they leave, how they are spread."""

from typing import Any

import fleet_chart as chart
import pytest


def group(objects: list[chart.Object], name: str) -> chart.Object:
    return chart.named(objects, "StatefulSet", name)


def spec_of(objects: list[chart.Object], name: str) -> dict[str, Any]:
    return group(objects, name)["spec"]["template"]["spec"]  # type: ignore[no-any-return]


def test_seats_are_numbered_through_all_groups() -> None:
    objects = chart.render("k2-hybrid")
    assert "ordinals" not in group(objects, "-expert")["spec"]
    assert group(objects, "-expert-gpu")["spec"]["ordinals"] == {"start": 100}


def test_pods_of_a_group_start_and_end_together() -> None:
    for thing in chart.of_kind(chart.render("k2-hybrid"), "StatefulSet"):
        if not thing["metadata"]["name"].endswith("-head"):
            assert thing["spec"]["podManagementPolicy"] == "Parallel"
            assert thing["spec"]["updateStrategy"]["type"] == "RollingUpdate"


@pytest.mark.parametrize("version", chart.HELMS)
def test_replicas_is_rendered_only_while_it_is_helms_to_own(version: str) -> None:
    owned = chart.render("demo", version=version)
    assert group(owned, "-expert")["spec"]["replicas"] == 2
    assert group(owned, "-attention")["spec"]["replicas"] == 1
    assert chart.named(owned, "Deployment", "-gateway")["spec"]["replicas"] == 1
    nobodys: chart.Values = {role: {"replicas": None} for role in ("expertShards", "attention", "gateway")}
    left = chart.render("demo", nobodys, version=version)
    for kind, name in (("StatefulSet", "-expert"), ("StatefulSet", "-attention"), ("Deployment", "-gateway")):
        assert "replicas" not in chart.named(left, kind, name)["spec"]


@pytest.mark.parametrize("version", chart.HELMS)
def test_replicas_can_be_set_to_null_on_the_command_line(version: str) -> None:
    objects = chart.render("demo", None, "--set", "expertShards.replicas=null", version=version)
    assert "replicas" not in group(objects, "-expert")["spec"]


def test_an_autoscaler_takes_replicas_from_helm() -> None:
    scaling = {"enabled": True, "maxReplicas": 5, "selector": {"app_kubernetes_io_instance": "fleet"}}
    objects = chart.render("demo", {"expertShards": {"autoscaling": scaling}})
    assert "replicas" not in group(objects, "-expert")["spec"]
    scaler = chart.named(objects, "HorizontalPodAutoscaler", "-expert")["spec"]
    assert scaler["scaleTargetRef"]["name"] == "fleet-expertfleet-expert"
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (1, 5)
    (policy,) = scaler["behavior"]["scaleDown"]["policies"]
    assert policy == {"type": "Pods", "value": 1, "periodSeconds": 61}, "the next leaves when the last one left"
    (metric,) = scaler["metrics"]
    assert metric["external"]["metric"] == {
        "name": "expertfleet_wanted_expert_shards",
        "selector": {"matchLabels": {"app_kubernetes_io_instance": "fleet"}},
    }
    assert metric["external"]["target"] == {"type": "AverageValue", "averageValue": "1"}, "as many pods as it says"


def test_a_group_has_what_it_does_not_say_from_the_main_group() -> None:
    values: chart.Values = {
        "expertShards": {
            "nodeSelector": {"machine": "big"},
            "settings": {"sliceMs": 7, "threads": 1},
            "autoscaling": {"enabled": True, "metric": "a"},
            "minReplicas": 1,
        },
        "expertGroups": {"small": {"firstSeat": 200, "nodeSelector": {"size": "small"}, "settings": {"leaveS": 5.5}}},
    }
    objects = chart.render("demo", values)
    spec = spec_of(objects, "-expert-small")
    assert spec["nodeSelector"] == {"size": "small"}, "replaced whole"
    assert "--slice-ms=7" in spec["containers"][0]["args"]
    assert "--leave-s=5.5" in spec["containers"][0]["args"], "settings are laid over key by key"
    assert spec["containers"][0]["resources"] == spec_of(objects, "-expert")["containers"][0]["resources"]
    assert [scaler["metadata"]["name"] for scaler in chart.of_kind(objects, "HorizontalPodAutoscaler")] == [
        "fleet-expertfleet-expert"
    ], "the main group's autoscaler is its own"
    assert "replicas" not in group(objects, "-expert-small")["spec"]


def test_a_group_on_gpus_gets_the_other_image_and_the_gpu() -> None:
    objects = chart.render("k2-hybrid")
    gpu, cpu = spec_of(objects, "-expert-gpu"), spec_of(objects, "-expert")
    assert gpu["containers"][0]["image"] == "registry.example.com/expertfleet:0.1.0-cuda"
    assert gpu["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert gpu["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert cpu["containers"][0]["image"] == "registry.example.com/expertfleet:0.1.0-cpu"
    assert "tolerations" not in cpu


def test_the_grace_period_lets_a_worker_leave_and_drain() -> None:
    values: chart.Values = {
        "attention": {"settings": {"leaveS": 100.5, "drainS": 20}},
        "expertShards": {"settings": {"leaveS": 1000, "drainS": 0}},
    }
    objects = chart.render("demo", values)
    assert spec_of(objects, "-attention")["terminationGracePeriodSeconds"] == 101 + 20 + 15
    assert spec_of(objects, "-expert")["terminationGracePeriodSeconds"] == 1000 + 15


def test_the_startup_probe_waits_the_minutes_it_is_told() -> None:
    objects = chart.render("demo", {"expertShards": {"startupMinutes": 90}})
    probe = spec_of(objects, "-expert")["containers"][0]["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] == 90 * 60


def test_pods_of_a_group_are_spread_over_nodes() -> None:
    for name in ("-expert", "-expert-gpu", "-attention"):
        objects = chart.render("k2-hybrid")
        (spread,) = spec_of(objects, name)["topologySpreadConstraints"]
        assert (spread["topologyKey"], spread["whenUnsatisfiable"]) == ("kubernetes.io/hostname", "DoNotSchedule")
        assert spread["labelSelector"] == group(objects, name)["spec"]["selector"]


def test_every_group_has_a_headless_service_and_a_disruption_budget_of_its_own() -> None:
    objects = chart.render("k2-hybrid")
    for name in ("-expert", "-expert-gpu", "-attention"):
        selector = group(objects, name)["spec"]["selector"]["matchLabels"]
        service = chart.named(objects, "Service", name)
        assert service["spec"]["clusterIP"] == "None"
        assert service["spec"]["selector"] == selector
        assert group(objects, name)["spec"]["serviceName"] == service["metadata"]["name"]
        budget = chart.named(objects, "PodDisruptionBudget", name)["spec"]
        assert (budget["maxUnavailable"], budget["selector"]["matchLabels"]) == (1, selector)


def test_disruption_budgets_can_be_left_out_and_the_head_has_none() -> None:
    names = {thing["metadata"]["name"] for thing in chart.of_kind(chart.render(), "PodDisruptionBudget")}
    assert names == {f"fleet-expertfleet-{role}" for role in ("attention", "expert", "gateway")}
    off = chart.render("demo", {"podDisruptionBudget": {"enabled": False}})
    assert not chart.of_kind(off, "PodDisruptionBudget")
