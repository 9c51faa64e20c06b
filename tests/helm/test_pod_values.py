"""What all pods can be given: it arrives in every role, alone or with the role's own over it."""

from typing import Any

import fleet_chart as chart
import pytest

PULL: chart.Values = {"model": {"source": "pull", "subPath": "k2", "pull": {"url": "https://models.example.com/k2"}}}
GROUP: chart.Values = {"expertGroups": {"big": {"firstSeat": 100, "replicas": 1}}}
# The path of a role's values, and the name that its pods' owner has after the release's.
ROLES = {
    "head": "-head",
    "attention": "-attention",
    "gateway": "-gateway",
    "expertShards": "-expert",
    "expertGroups.big": "-expert-big",
    "model.pull": "-pull-",
}


def rendered(values: chart.Values, version: str = "4") -> list[chart.Object]:
    return chart.render("demo", chart.over(chart.over(PULL, GROUP), values), version=version)


def pod_of(objects: list[chart.Object], role: str) -> chart.Object:
    suffix = ROLES[role]
    (found,) = (
        pod
        for owner, pod in chart.pods(objects)
        if owner == f"fleet-expertfleet{suffix}" or (suffix.endswith("-") and f"expertfleet{suffix}" in owner)
    )
    return found


def at(path: str, value: Any) -> chart.Values:
    for key in reversed(path.split(".")):
        value = {key: value}
    return value  # type: ignore[no-any-return]


def main_of(pod: chart.Object, role: str) -> chart.Object:
    """The container that does the role's work."""
    name = {"expertShards": "expert", "expertGroups.big": "expert", "model.pull": "pull"}.get(role, role)
    (found,) = (
        each for each in (*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]) if each["name"] == name
    )
    return found  # type: ignore[no-any-return]


OF_THE_POD = ("nodeSelector", "tolerations", "affinity", "schedulerName", "hostAliases", "dnsPolicy", "dnsConfig")


@pytest.mark.parametrize("role", ROLES)
def test_what_all_pods_get_arrives_in_each(role: str) -> None:
    pod = pod_of(rendered(chart.POD), role)
    for key in OF_THE_POD:
        assert pod["spec"][key] == chart.POD[key], key
    assert pod["metadata"]["labels"].items() >= chart.POD["podLabels"].items()
    assert pod["metadata"]["annotations"] == chart.POD["podAnnotations"]
    container = main_of(pod, role)
    for key in ("env", "volumeMounts"):
        assert all(each in container[key] for each in chart.POD[key]), key
    assert container["envFrom"] == chart.POD["envFrom"]
    assert chart.POD["volumes"][0] in pod["spec"]["volumes"]
    assert pod["spec"]["initContainers"][0] == chart.POD["initContainers"][0], "before all others"
    beside = [each for each in pod["spec"]["containers"] if each == chart.POD["containers"][0]]
    assert len(beside) == (0 if role == "model.pull" else 1), "a pull's Job would never end"


@pytest.mark.parametrize("role", ROLES)
def test_a_roles_own_reaches_no_other(role: str) -> None:
    own = chart.own("its-own")
    objects = rendered(at(role, own))
    # A further group has from the main one what it does not say itself.
    heirs = {"expertShards": ["expertShards", "expertGroups.big"]}.get(role, [role])
    for other in ROLES:
        pod, is_heir = pod_of(objects, other), other in heirs
        for key in ("tolerations", "hostAliases", "priorityClassName"):
            assert pod["spec"].get(key) == (own[key] if is_heir else None), f"{other} {key}"
        assert ("role-of-its-own" in pod["metadata"]["labels"]) == is_heir
        assert [each["name"] for each in main_of(pod, other)["env"]].count("OWN") == is_heir
        assert [each["name"] for each in pod["spec"]["volumes"]].count("scratch") == is_heir


@pytest.mark.parametrize("role", ROLES)
def test_maps_are_laid_over_lists_follow_and_the_rest_is_replaced(role: str) -> None:
    below: chart.Values = {
        "nodeSelector": {"a": "1", "b": "2"},
        "tolerations": [{"key": "all", "operator": "Exists"}],
        "env": [{"name": "A", "value": "all"}, {"name": "B", "value": "all"}],
        "affinity": {"podAffinity": {}},
        "dnsPolicy": "Default",
        "podSecurityContext": {"runAsUser": 7},
        "securityContext": {"capabilities": {"add": ["SYS_NICE"]}},
    }
    above: chart.Values = {
        "nodeSelector": {"b": "3"},
        "tolerations": [{"key": "own", "operator": "Exists"}],
        "env": [{"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
        "affinity": {"nodeAffinity": {}},
        "dnsPolicy": "ClusterFirst",
        "podSecurityContext": {"runAsUser": 8, "fsGroup": 8},
        "securityContext": {"readOnlyRootFilesystem": False, "capabilities": {"add": ["NET_ADMIN"]}},
    }
    pod = pod_of(rendered(chart.over(below, at(role, above))), role)
    spec = pod["spec"]
    assert spec["nodeSelector"] == {"a": "1", "b": "3"}
    assert [each["key"] for each in spec["tolerations"]] == ["all", "own"]
    container = main_of(pod, role)
    given = [each for each in container["env"] if each["name"] in ("A", "B")]
    assert given == [below["env"][0], above["env"][0]], "one of a name, as Kubernetes takes no two"
    assert (spec["affinity"], spec["dnsPolicy"]) == ({"nodeAffinity": {}}, "ClusterFirst")
    security = spec["securityContext"]
    assert (security["runAsUser"], security["fsGroup"]) == (8, 8)
    assert container["securityContext"]["readOnlyRootFilesystem"] is False
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"add": ["NET_ADMIN"], "drop": ["ALL"]}, "at any depth"


@pytest.mark.parametrize("version", chart.HELMS)
def test_null_takes_away_what_was_said_before(version: str) -> None:
    """By the top level, or by a values file before; Helm itself takes away nothing but defaults."""
    said: chart.Values = {"nodeSelector": {"a": "1"}, "podLabels": {"b": "2"}, "commonAnnotations": {"c": "3"}}
    left: chart.Values = {"gateway": {"nodeSelector": {"a": None}, "podLabels": {"b": None}}}
    objects = rendered(chart.over({**said, "commonAnnotations": {"c": None}}, left), version)
    pod = pod_of(objects, "gateway")
    assert "nodeSelector" not in pod["spec"]
    assert "b" not in pod["metadata"]["labels"]
    assert pod_of(objects, "head")["spec"]["nodeSelector"] == {"a": "1"}
    assert not [thing for thing in objects if "c" in thing["metadata"].get("annotations", ())]
    slices: chart.Values = {"nvidia.com/gpu": None, "nvidia.com/mig-1g.10gb": 2}
    gpu = {"resources": {"requests": slices, "limits": slices}, "nodeSelector": {"expertfleet/machine": None}}
    pod = dict(chart.pods(chart.render("k2-hybrid", {"expertGroups": {"gpu": gpu}}, version=version)))[
        "fleet-expertfleet-expert-gpu"
    ]
    amounts = {"cpu": "8", "memory": "32Gi", "nvidia.com/mig-1g.10gb": 2}
    assert pod["spec"]["containers"][0]["resources"] == {"requests": amounts, "limits": amounts}
    assert "nodeSelector" not in pod["spec"]


@pytest.mark.parametrize("version", chart.HELMS)
@pytest.mark.parametrize("role", ROLES)
def test_what_is_left_blank_in_a_role_says_nothing(role: str, version: str) -> None:
    keys = {*chart.POD, "priorityClassName", "runtimeClassName", "securityContext"} - {"podSecurityContext"}
    blank = dict.fromkeys(keys - ({"containers"} if role == "model.pull" else set()))
    assert rendered(at(role, blank), version) == rendered({}, version)
    spread = "topologySpreadConstraints"
    assert rendered(at(role, {spread: None}), version) == rendered(at(role, {spread: []}), version)


@pytest.mark.parametrize("version", chart.HELMS)
def test_null_takes_away_a_group_of_a_preset_and_keeps_what_is_null_inside_of_one(version: str) -> None:
    objects = chart.render("k2-hybrid", None, "--set", "expertGroups.gpu=null", version=version)
    shards = [owner for owner, _ in chart.pods(objects) if "-expert" in owner.replace("fleet-expertfleet", "")]
    assert shards == ["fleet-expertfleet-expert"]
    gpu = {"settings": {"memoryGib": None}, "replicas": None}
    group = chart.named(
        chart.render("k2-hybrid", at("expertGroups.gpu", gpu), version=version), "StatefulSet", "-expert-gpu"
    )
    arguments = group["spec"]["template"]["spec"]["containers"][0]["args"]
    assert not [word for word in arguments if "memory-gib" in word], "not the main group's"
    assert "replicas" not in group["spec"]


RESTRICTED = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}


@pytest.mark.parametrize("version", chart.HELMS)
@pytest.mark.parametrize(
    "given", [{}, None, {"runAsUser": None}, dict.fromkeys(("runAsUser", "runAsGroup", "fsGroup"))]
)
def test_a_cluster_may_choose_the_users(given: chart.Values | None, version: str) -> None:
    """OpenShift refuses pods that name users outside of their namespace's range."""
    for owner, pod in chart.pods(rendered({"podSecurityContext": given}, version)):
        assert pod["spec"]["securityContext"] == RESTRICTED, owner


@pytest.mark.parametrize("version", chart.HELMS)
@pytest.mark.parametrize("role", ROLES)
def test_of_one_role_alone_too(role: str, version: str) -> None:
    heirs = {"expertShards": ["expertShards", "expertGroups.big"]}.get(role, [role])
    objects = rendered(at(role, {"podSecurityContext": None}), version)
    for other in ROLES:
        assert (pod_of(objects, other)["spec"]["securityContext"] == RESTRICTED) == (other in heirs), other


@pytest.mark.parametrize("version", chart.HELMS)
@pytest.mark.parametrize(
    "words",
    [
        ("--set", "podSecurityContext={}"),
        ("--set", "podSecurityContext=null"),
        ("--set-json", "podSecurityContext={}"),
        ("--set-json", "podSecurityContext=null"),
        (
            "--set",
            "podSecurityContext.runAsUser=null,podSecurityContext.runAsGroup=null,podSecurityContext.fsGroup=null",
        ),
    ],
    ids=" ".join,
)
def test_the_command_line_can_say_so_too(words: tuple[str, str], version: str) -> None:
    objects = chart.render("demo", None, *words, version=version)
    assert objects == chart.render("demo", {"podSecurityContext": {}}, version=version)


@pytest.mark.parametrize("version", chart.HELMS)
def test_the_command_line_can_name_a_user_of_one_role(version: str) -> None:
    in_one = chart.render("demo", None, "--set-json", 'gateway.podSecurityContext={"runAsUser":1234}', version=version)
    users = {owner.rpartition("-")[2]: pod["spec"]["securityContext"]["runAsUser"] for owner, pod in chart.pods(in_one)}
    assert users == {"gateway": 1234, "head": 10001, "attention": 10001, "expert": 10001}


@pytest.mark.parametrize("user", [1, 1234, 1000680000, 2147483647])
def test_a_user_of_ones_own_is_written_as_a_whole_number(user: int) -> None:
    for owner, pod in chart.pods(rendered({"podSecurityContext": {"runAsUser": user, "fsGroup": user}})):
        security = pod["spec"]["securityContext"]
        assert (security["runAsUser"], security["fsGroup"]) == (user, user), owner
        assert isinstance(security["runAsUser"], int)
        assert "runAsGroup" not in security


def test_groups_are_spread_by_the_same_rule_but_for_single_pods() -> None:
    spread = {role: pod_of(rendered({}), role)["spec"].get("topologySpreadConstraints") for role in ROLES}
    assert spread.pop("head") is spread.pop("model.pull") is None
    for role, constraints in spread.items():
        (constraint,) = constraints
        labels = pod_of(rendered({}), role)["metadata"]["labels"]
        assert constraint["labelSelector"]["matchLabels"] == labels, "its own group's alone"
    zones = [{"topologyKey": "zone", "maxSkew": 2, "whenUnsatisfiable": "DoNotSchedule", "minDomains": 2}]
    chosen = {"topologyKey": "rack", "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule"}
    chosen |= {"labelSelector": {"matchLabels": {"a": "b"}}}
    objects = rendered({"topologySpreadConstraints": [], "gateway": {"topologySpreadConstraints": [*zones, chosen]}})
    of_all = {role: pod_of(objects, role)["spec"].get("topologySpreadConstraints") for role in ROLES}
    (first, second) = of_all.pop("gateway")
    assert set(of_all.values()) == {None}
    assert first.items() >= zones[0].items()
    assert first["labelSelector"]["matchLabels"]["app.kubernetes.io/component"] == "gateway"
    assert second == chosen


@pytest.mark.parametrize(
    ("given", "account", "is_made"),
    [
        ({}, "fleet-expertfleet", True),
        ({"name": "models"}, "models", True),
        ({"create": False}, "default", False),
        ({"create": False, "name": "models"}, "models", False),
    ],
)
def test_the_account_is_made_or_named(given: chart.Values, account: str, is_made: bool) -> None:
    objects = rendered({"serviceAccount": given})
    assert [each["metadata"]["name"] for each in chart.of_kind(objects, "ServiceAccount")] == [account] * is_made
    for owner, pod in chart.pods(objects):
        assert pod["spec"]["serviceAccountName"] == account, owner
        assert pod["spec"]["automountServiceAccountToken"] is False


def test_cloud_providers_know_the_account_by_its_annotations() -> None:
    annotations = {"iam.gke.io/gcp-service-account": "a@b.iam.gserviceaccount.com"}
    (account,) = chart.of_kind(rendered({"serviceAccount": {"annotations": annotations}}), "ServiceAccount")
    assert account["metadata"]["annotations"] == annotations


def test_every_object_has_the_labels_and_annotations_of_all() -> None:
    for thing in chart.render_everything():
        metadata = thing["metadata"]
        assert metadata["labels"]["team"] in ("serving", "edge"), metadata["name"]
        assert metadata["annotations"]["example.com/cost-centre"] == "12", metadata["name"]
        assert metadata["labels"]["app.kubernetes.io/instance"] == "fleet"
    claims = [
        claim for thing in chart.render_everything() for claim in thing.get("spec", {}).get("volumeClaimTemplates", ())
    ]
    assert [set(claim["metadata"]) for claim in claims] == [{"name"}], "Kubernetes refuses to change them"


def test_secrets_of_registries_are_given_as_kubernetes_writes_them() -> None:
    for owner, pod in chart.pods(rendered({"imagePullSecrets": [{"name": "a"}, {"name": "b.c"}]})):
        assert pod["spec"]["imagePullSecrets"] == [{"name": "a"}, {"name": "b.c"}], owner


@pytest.mark.parametrize("name", ["nvidia.com/gpu", "nvidia.com/mig-1g.10gb", "amd.com/gpu", "gpu.example.com/slice"])
@pytest.mark.parametrize("amount", [1, "1", 30_000])
def test_a_gpu_has_the_name_that_the_cluster_gives_it(name: str, amount: int | str) -> None:
    """Kubernetes' manuals put the number in quotes; some vendors count a GPU's memory."""
    amounts = {"cpu": 1.5, "memory": "3Gi", name: amount}
    gpu = {"firstSeat": 100, "settings": {"device": "cuda"}, "resources": {"requests": amounts, "limits": amounts}}
    objects = rendered({"expertGroups": {"big": gpu}})
    container = main_of(pod_of(objects, "expertGroups.big"), "expertGroups.big")
    assert container["resources"]["limits"][name] == container["resources"]["requests"][name] == amount
    assert container["image"].endswith("-cuda")


@pytest.mark.parametrize("name", ["rdma/hca_shared_devices", "nvidia.com/hostdev"])
def test_a_device_that_is_no_gpu_may_stand_beside_processors(name: str) -> None:
    amounts = {name: 1}
    objects = rendered({"expertShards": {"resources": {"limits": amounts}}})
    assert main_of(pod_of(objects, "expertShards"), "expertShards")["resources"]["limits"].items() >= amounts.items()


@pytest.mark.parametrize("version", chart.HELMS)
def test_no_list_has_two_of_a_name(version: str) -> None:
    """Kubernetes refuses them where objects are applied, as Helm 4 does."""
    for name, container in chart.containers(chart.render_everything(version)):
        for key in ("env", "ports"):
            names = [each["name"] for each in container.get(key, ())]
            assert len(names) == len(set(names)), f"{name} {key}"
        places = [each["mountPath"] for each in container.get("volumeMounts", ())]
        assert len(places) == len(set(places)), name
    for owner, pod in chart.pods(chart.render_everything(version)):
        everything = [*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]]
        for listed in (pod["spec"]["volumes"], everything):
            names = [each["name"] for each in listed]
            assert len(names) == len(set(names)), owner
