"""The policy that refuses fewer expert shards than hold the model."""

import json
import re
from typing import Any

import fleet_chart as chart


def policy() -> Any:
    (found,) = chart.of_kind(chart.render("k2-hybrid"), "ValidatingAdmissionPolicy")
    return found["spec"]


def test_it_is_made_on_request_alone_as_it_is_the_whole_clusters() -> None:
    assert not chart.of_kind(chart.render(), "ValidatingAdmissionPolicy")
    assert not chart.of_kind(chart.render(), "ValidatingAdmissionPolicyBinding")


def test_it_looks_at_both_ways_to_scale() -> None:
    (rule,) = policy()["matchConstraints"]["resourceRules"]
    assert rule["resources"] == ["statefulsets", "statefulsets/scale"]
    assert rule["operations"] == ["UPDATE"], "a fleet without a number of Helm's begins with one pod"
    assert policy()["failurePolicy"] == "Fail"


def test_it_knows_the_floor_of_every_group_of_this_release_alone() -> None:
    (condition,) = policy()["matchConditions"]
    floors = re.search(r"\{.*\}", condition["expression"])
    assert floors is not None
    assert json.loads(floors[0].replace("'", '"')) == {
        "fleet-expertfleet-expert": 5,
        "fleet-expertfleet-expert-gpu": 1,
    }
    assert "request.namespace == 'serving'" in condition["expression"]
    variables = {variable["name"]: variable["expression"] for variable in policy()["variables"]}
    assert variables["floor"] == f"{floors[0]}[request.name]"


def test_a_scale_to_nothing_carries_no_number() -> None:
    variables = {variable["name"]: variable["expression"] for variable in policy()["variables"]}
    assert variables["wanted"] == "has(object.spec.replicas) ? object.spec.replicas : 0"


def test_it_is_bound_to_the_namespace_and_denies() -> None:
    objects = chart.render("k2-hybrid")
    (made,) = chart.of_kind(objects, "ValidatingAdmissionPolicy")
    (binding,) = chart.of_kind(objects, "ValidatingAdmissionPolicyBinding")
    assert binding["spec"]["policyName"] == made["metadata"]["name"]
    assert binding["spec"]["validationActions"] == ["Deny"]
    selector = binding["spec"]["matchResources"]["namespaceSelector"]
    assert selector == {"matchLabels": {"kubernetes.io/metadata.name": "serving"}}
    assert made["metadata"]["name"].startswith("serving-"), "names of the whole cluster must not meet"
