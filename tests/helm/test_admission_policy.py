"""The policy that refuses fewer expert shards than hold the model: what it says to requests, its expressions evaluated."""

import subprocess
from pathlib import Path
from typing import Any

import fleet_chart as chart
import pytest
from admission import Policy
from fake_cluster import FakeCluster

MAIN, GPU = "fleet-expertfleet-expert", "fleet-expertfleet-expert-gpu"
RESOURCES = ("statefulsets", "statefulsets/scale")


def objects() -> list[chart.Object]:
    """The main group's floor is 5."""
    return chart.render("k2-hybrid")


def with_replicas(replicas: int | None) -> dict[str, Any]:
    """None: the number is absent, as it is from a scale to 0."""
    return {"spec": {} if replicas is None else {"replicas": replicas}}


def refusal(
    before: int | None,
    after: int | None,
    *,
    name: str = MAIN,
    namespace: str = "serving",
    operation: str = "UPDATE",
    resource: str = "statefulsets/scale",
) -> str:
    policy = Policy(objects())
    return policy.refusal(operation, resource, namespace, name, with_replicas(before), with_replicas(after))


def test_it_is_made_on_request_alone_as_it_is_the_whole_clusters() -> None:
    assert not chart.of_kind(chart.render(), "ValidatingAdmissionPolicy")
    assert not chart.of_kind(chart.render(), "ValidatingAdmissionPolicyBinding")


@pytest.mark.parametrize("resource", RESOURCES)
@pytest.mark.parametrize(("before", "after"), [(6, 4), (5, 1), (6, 0), (6, None), (4, 3), (1, None)])
def test_fewer_than_hold_the_model_are_refused_with_both_numbers(before: int, after: int | None, resource: str) -> None:
    told = f"{MAIN}: {after or 0} shards do not hold the model; at least 5 do (minReplicas)"
    assert refusal(before, after, resource=resource) == told


@pytest.mark.parametrize("resource", RESOURCES)
@pytest.mark.parametrize(("before", "after"), [(6, 5), (6, 12), (5, 5), (1, 2), (4, 4), (None, None), (None, 1)])
def test_enough_or_no_fewer_than_before_may_pass(before: int | None, after: int | None, resource: str) -> None:
    """What is too small already may be changed in other ways, and grow step by step."""
    assert refusal(before, after, resource=resource) == ""


def test_every_group_has_its_own_floor() -> None:
    assert "at least 1 do" in refusal(1, 0, name=GPU)
    assert refusal(2, 1, name=GPU) == ""


def test_what_is_not_this_fleets_is_let_be() -> None:
    assert refusal(6, 0, namespace="other") == ""
    for name in ("other-expertfleet-expert", "fleet-expertfleet-attention", "fleet-expertfleet-head"):
        assert refusal(6, 0, name=name) == ""
    assert refusal(6, 0, resource="deployments/scale") == ""


def test_a_fleet_without_a_number_of_helms_begins_with_one_pod_and_may_be_deleted() -> None:
    assert refusal(None, 1, operation="CREATE", resource="statefulsets") == ""
    assert refusal(6, None, operation="DELETE", resource="statefulsets") == ""


@pytest.mark.parametrize("version", chart.HELMS)
def test_kubectl_says_why(version: str, tmp_path: Path) -> None:
    cluster, policy = FakeCluster(), Policy(objects())
    cluster.refusal = lambda namespace, name, before, after: policy.refusal(
        "UPDATE", RESOURCES[1], namespace, name, with_replicas(before), with_replicas(after or None)
    )
    cluster.write_kubeconfig(tmp_path / "kubeconfig")
    cluster.add({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "serving"}})
    cluster.add(chart.named(objects(), "StatefulSet", "-expert"), "serving")

    def scale(replicas: int) -> subprocess.CompletedProcess[str]:
        kubectl = [str(chart.BINARIES / version / "kubectl"), "--kubeconfig", str(tmp_path / "kubeconfig")]
        words = ["-n", "serving", "scale", "statefulset", MAIN, f"--replicas={replicas}"]
        return subprocess.run([*kubectl, *words], capture_output=True, text=True, timeout=60, check=False)

    try:
        for replicas in (4, 0):
            refused = scale(replicas)
            assert refused.returncode != 0
            assert f"{replicas} shards do not hold the model; at least 5 do" in refused.stderr
        assert cluster.get("StatefulSet", "serving", MAIN)["spec"]["replicas"] == 6
        assert scale(5).returncode == 0
        assert cluster.get("StatefulSet", "serving", MAIN)["spec"]["replicas"] == 5
    finally:
        cluster.close()


def test_nothing_passes_where_an_expression_fails_and_names_of_the_whole_cluster_do_not_meet() -> None:
    (made,) = chart.of_kind(objects(), "ValidatingAdmissionPolicy")
    assert made["spec"]["failurePolicy"] == "Fail"
    assert made["metadata"]["name"].startswith("serving-")
