"""Where the checkpoint comes from: the image, a claim, a folder of the node, or a Job that copies it."""

from typing import Any

import fleet_chart as chart
import pytest

URL = "https://models.example.com/k2"
PULL: chart.Values = {"model": {"source": "pull", "subPath": "k2", "pull": {"url": URL}}}


def model_volumes(objects: list[chart.Object]) -> list[Any]:
    volumes = [volume for _, pod in chart.pods(objects) for volume in pod["spec"]["volumes"]]
    return [{key: volume[key] for key in volume if key != "name"} for volume in volumes if volume["name"] == "model"]


def job_of(objects: list[chart.Object]) -> chart.Object:
    (job,) = chart.of_kind(objects, "Job")
    return job


def test_the_bundled_model_needs_no_volume() -> None:
    assert model_volumes(chart.render()) == []


def test_a_claim_or_a_folder_is_mounted_everywhere_and_read_only() -> None:
    claim = chart.render("demo", {"model": {"source": "existingClaim", "existingClaim": {"name": "k2"}}})
    assert model_volumes(claim) == [{"persistentVolumeClaim": {"claimName": "k2"}}] * 4
    folder = chart.render("demo", {"model": {"source": "hostPath", "hostPath": {"path": "/srv/k2"}}})
    assert model_volumes(folder) == [{"hostPath": {"path": "/srv/k2", "type": "Directory"}}] * 4
    for objects in (claim, folder):
        for name, container in chart.containers(objects):
            (mount,) = (mount for mount in container["volumeMounts"] if mount["name"] == "model")
            assert mount == {"name": "model", "mountPath": "/model", "readOnly": True}, name
            assert "--model=/model" in container["args"]


def test_a_shared_claim_stands_behind_the_model_of_whoever_reads_weights() -> None:
    shared = {"existingClaim": "everything", "subPath": "k2"}
    objects = chart.render("demo", {"model": {"source": "hostPath", "hostPath": {"path": "/srv/k2"}, "shared": shared}})
    with_it = {
        name: container
        for name, container in chart.containers(objects)
        if "--shared-model=/shared-model/k2" in container["args"]
    }
    assert {name.rpartition("/")[2] for name in with_it} == {"head", "attention", "expert"}
    for container in with_it.values():
        mounts = [mount for mount in container["volumeMounts"] if mount["name"] == "shared-model"]
        assert mounts == [{"name": "shared-model", "mountPath": "/shared-model", "readOnly": True}]
    claim = {"name": "shared-model", "persistentVolumeClaim": {"claimName": "everything", "readOnly": True}}
    assert [claim in pod["spec"]["volumes"] for _, pod in chart.pods(objects)].count(True) == 3
    without_folder = {**shared, "subPath": ""}
    objects = chart.render(
        "demo", {"model": {"source": "hostPath", "hostPath": {"path": "/k"}, "shared": without_folder}}
    )
    assert any("--shared-model=/shared-model" in container["args"] for _, container in chart.containers(objects))


def test_a_pull_fills_a_volume_that_stays() -> None:
    objects = chart.render("demo", PULL)
    claim = chart.named(objects, "PersistentVolumeClaim", "-model")
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert model_volumes(objects) == [{"persistentVolumeClaim": {"claimName": "fleet-expertfleet-model"}}] * 5


def test_the_mark_comes_after_the_pull_and_everybody_waits_for_it() -> None:
    objects = chart.render("demo", PULL)
    spec = job_of(objects)["spec"]["template"]["spec"]
    (pull,), (complete,) = spec["initContainers"], spec["containers"]
    assert pull["args"] == ["checkpoint", "pull", URL, "/model/k2", "--jobs=8"]
    touch, mark = complete["command"]
    assert touch == "touch"
    for owner, pod in chart.pods(objects):
        if "-pull-" not in owner:
            (await_model,) = pod["spec"]["initContainers"]
            assert await_model["command"][-1] == mark, owner
            assert await_model["image"] == pod["spec"]["containers"][0]["image"], "no other image is pulled to wait"
    assert not mark.startswith("/model/k2/"), "the checkpoint's folder holds nothing but the checkpoint"


@pytest.mark.parametrize(
    ("folder", "mark"),
    [("k2", "/model/.k2.complete"), ("org/k2", "/model/org/.k2.complete"), ("a/b/c.d", "/model/a/b/.c.d.complete")],
)
def test_a_folder_may_lie_in_others(folder: str, mark: str) -> None:
    objects = chart.render("demo", chart.over(PULL, {"model": {"subPath": folder}}))
    spec = job_of(objects)["spec"]["template"]["spec"]
    assert spec["initContainers"][0]["args"][3] == f"/model/{folder}"
    assert spec["containers"][0]["command"] == ["touch", mark]
    for name, container in chart.containers(objects):
        told = [word for word in container.get("args", ()) if word.startswith("--model=")]
        assert told == [f"--model=/model/{folder}"] or "pull" in name or "await-model" in name
    shared = {"existingClaim": "all", "subPath": folder}
    objects = chart.render("demo", {"model": {"source": "hostPath", "hostPath": {"path": "/k"}, "shared": shared}})
    assert any(
        f"--shared-model=/shared-model/{folder}" in container["args"] for _, container in chart.containers(objects)
    )


def test_nobody_waits_where_nothing_is_pulled() -> None:
    assert not [owner for owner, pod in chart.pods(chart.render()) if "initContainers" in pod["spec"]]


def test_another_pod_is_another_job_and_the_same_pod_the_same() -> None:
    def name(values: chart.Values) -> Any:
        return job_of(chart.render("demo", chart.over(PULL, values)))["metadata"]["name"]

    assert name({"expertShards": {"replicas": 3}}) == name({}), "what the pod does not say starts no Job"
    changed: list[chart.Values] = [
        {"model": {"pull": {"jobs": 4}}},
        {"model": {"subPath": "k3"}},
        {"image": {"tag": "0.2.0"}},
    ]
    assert len({name({}), *map(name, changed)}) == 4, "a Job's pod cannot be changed"


def test_a_token_is_given_to_the_pull_alone() -> None:
    values = chart.over(PULL, {"model": {"pull": {"token": {"existingSecret": "bearer", "key": "hf"}}}})
    given = {
        name.rpartition("/")[2]: variable["valueFrom"]["secretKeyRef"]
        for name, container in chart.containers(chart.render("demo", values))
        for variable in container.get("env", ())
        if variable["name"] == "EXPERTFLEET_PULL_TOKEN"
    }
    assert given == {"pull": {"name": "bearer", "key": "hf"}}
