"""What holds for every pod that the chart makes, whatever its role."""

import re

import fleet_chart as chart
import pytest

PRESETS = (*chart.PRESETS, "everything")


def objects_of(preset: str) -> list[chart.Object]:
    return chart.render_everything() if preset == "everything" else chart.render(preset)


@pytest.fixture(params=PRESETS)
def objects(request: pytest.FixtureRequest) -> list[chart.Object]:
    return objects_of(request.param)


def test_nobody_is_root(objects: list[chart.Object]) -> None:
    for owner, pod in chart.pods(objects):
        security = pod["spec"]["securityContext"]
        assert security["runAsNonRoot"] is True, owner
        assert security["runAsUser"] > 0, owner
        assert security["fsGroup"] > 0, owner


def test_pods_meet_the_restricted_standard(objects: list[chart.Object]) -> None:
    for owner, pod in chart.pods(objects):
        assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, owner
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod["spec"]), owner
        kinds = {kind for volume in pod["spec"]["volumes"] for kind in volume} - {"name"}
        assert kinds <= {"emptyDir", "persistentVolumeClaim", "secret"}, owner
    for name, container in chart.containers(objects):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, name


def test_no_pod_can_talk_to_kubernetes(objects: list[chart.Object]) -> None:
    assert not [thing for thing in objects if thing["kind"].endswith(("Role", "RoleBinding"))]
    (account,) = chart.of_kind(objects, "ServiceAccount")
    assert account["automountServiceAccountToken"] is False
    for owner, pod in chart.pods(objects):
        assert pod["spec"]["automountServiceAccountToken"] is False, owner
        assert pod["spec"]["serviceAccountName"] == account["metadata"]["name"], owner


def test_services_of_the_namespace_are_no_settings(objects: list[chart.Object]) -> None:
    """A Service `expertfleet-x` would be a variable EXPERTFLEET_X_PORT, which no role knows, and none would start."""
    for owner, pod in chart.pods(objects):
        assert pod["spec"]["enableServiceLinks"] is False, owner


def test_processors_and_memory_are_asked_for_and_limited(objects: list[chart.Object]) -> None:
    for name, container in chart.containers(objects):
        for amounts in ("requests", "limits"):
            assert {"cpu", "memory"} <= set(container["resources"][amounts]), name
        assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"], name


def test_images_are_named_by_version_or_digest(objects: list[chart.Object]) -> None:
    for name, container in chart.containers(objects):
        assert re.search(r":\d+\.\d+\.\d+-(cpu|cuda)$|@sha256:[0-9a-f]{64}$", container["image"]), name


def test_secrets_come_by_reference_alone(objects: list[chart.Object]) -> None:
    assert not chart.of_kind(objects, "Secret")
    for name, container in chart.containers(objects):
        for variable in container.get("env", ()):
            if variable["name"].startswith("EXPERTFLEET_"):
                assert set(variable["valueFrom"]) == {"secretKeyRef"}, name


def test_every_mount_has_its_volume_and_every_volume_a_bound(objects: list[chart.Object]) -> None:
    for thing in objects:
        if thing["kind"] not in ("StatefulSet", "Deployment", "Job"):
            continue
        spec = thing["spec"]["template"]["spec"]
        claimed = {claim["metadata"]["name"] for claim in thing["spec"].get("volumeClaimTemplates", ())}
        volumes = {volume["name"] for volume in spec["volumes"]} | claimed
        mounted = {
            mount["name"]
            for container in (*spec.get("initContainers", ()), *spec["containers"])
            for mount in container["volumeMounts"]
        }
        assert mounted == volumes, thing["metadata"]["name"]
        assert all("sizeLimit" in volume["emptyDir"] for volume in spec["volumes"] if "emptyDir" in volume)


def test_home_and_temporary_files_can_be_written(objects: list[chart.Object]) -> None:
    for name, container in chart.containers(objects):
        homes = [variable["value"] for variable in container.get("env", ()) if variable["name"] == "HOME"]
        writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
        assert set(homes) <= writable, name


def test_selectors_find_their_own_pods_alone(objects: list[chart.Object]) -> None:
    templates = dict(chart.pods(objects))
    for owner, thing in ((thing["metadata"]["name"], thing) for thing in objects):
        if thing["kind"] in ("StatefulSet", "Deployment"):
            wanted = thing["spec"]["selector"]["matchLabels"].items()
            chosen = [name for name, pod in templates.items() if wanted <= pod["metadata"]["labels"].items()]
            assert chosen == [owner]


def test_a_new_version_of_the_chart_alone_replaces_no_pod(objects: list[chart.Object]) -> None:
    for owner, pod in chart.pods(objects):
        assert not {"helm.sh/chart", "app.kubernetes.io/version"} & set(pod["metadata"]["labels"]), owner


def test_pods_that_serve_have_the_priority_and_the_pull_has_not() -> None:
    for values, name in (({}, "serving-fleet-expertfleet"), ({"priorityClassName": "high"}, "high")):
        objects = chart.render("k2-hybrid", {"priorityClass": {"create": True}, **values})
        classes = {owner: pod["spec"].get("priorityClassName") for owner, pod in chart.pods(objects)}
        (made,) = chart.of_kind(objects, "PriorityClass")
        assert made["metadata"]["name"] == name
        (pull,) = (owner for owner in classes if "-pull-" in owner)
        assert classes.pop(pull) is None
        assert set(classes.values()) == {name}
