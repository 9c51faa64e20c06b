"""Names of objects, whatever the release, its namespace and its parts are called."""

import re

import fleet_chart as chart
import kubernetes_validate
import pytest

# A Service's, which is the strictest.
LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
RELEASES = (
    *("my.release", "a.b.c-d.e", "2024", "1.0", "1e3", "null", "true", "on", "0x1f", "x", "expertfleet"),
    "a-release-with-a-name-that-goes-on-and-on-and-on-for",
    "a.release.with.dots.whose.name.goes.on.and.on.for.ever",
    "exactly-thirty-two-characters-xy.expertfleet",
)


def rendered(release: str, values: chart.Values | None = None, version: str = "4") -> list[chart.Object]:
    words = ("template", release[:53], str(chart.CHART), "--namespace", "1234", *chart.PROMETHEUS)
    done = chart.run_helm(version, *words, "--values", chart.preset_file("k2-hybrid"), values=values)
    assert done.returncode == 0, done.stderr
    return chart.read_objects(done.stdout)


def names(objects: list[chart.Object]) -> dict[str, str]:
    return {f"{thing['kind']} {thing['metadata']['name']}": thing["metadata"]["name"] for thing in objects}


@pytest.mark.parametrize("release", RELEASES)
def test_every_release_has_names_that_kubernetes_takes(release: str) -> None:
    objects = rendered(release)
    for thing in objects:
        name = thing["metadata"]["name"]
        assert isinstance(name, str)
        if thing["kind"] not in ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"):
            assert LABEL.fullmatch(name), name
        if thing["kind"] == "StatefulSet":
            assert len(name) <= 52, "pods carry the name and a hash of ten characters as a label"
        assert thing["metadata"]["labels"]["app.kubernetes.io/instance"] == release[:53]
        kubernetes_validate.validate(thing, chart.KUBERNETES[0], strict=True)


@pytest.mark.parametrize("release", RELEASES)
def test_both_helms_agree(release: str) -> None:
    assert rendered(release, version="3") == rendered(release, version="4")


def test_what_is_changed_meets_nobody_elses() -> None:
    same = [
        ("a.b", "a-b"),
        ("a-name-that-is-far-too-long-to-stay-1", "a-name-that-is-far-too-long-to-stay-2"),
        ("1a", "r1a"),
    ]
    for one, other in same:
        first, second = (set(names(rendered(release))) for release in (one, other))
        assert not first & second


def test_a_name_that_fits_stays_as_it_is() -> None:
    assert "Service fleet-expertfleet-head" in names(rendered("fleet"))
    assert "Service my-expertfleet-head" in names(rendered("my-expertfleet"))
    assert "Service fleet-other-head" in names(rendered("fleet", {"nameOverride": "other"}))
    assert "Service other-head" in names(rendered("fleet", {"fullnameOverride": "other"}))


@pytest.mark.parametrize("word", ["null", "true", "on", "1e3"])
def test_words_that_yaml_reads_otherwise_stay_words(word: str) -> None:
    """Of which a name begins with a letter, and one with a digit where it may."""
    texts: chart.Values = {
        "clusterToken": {"existingSecret": word, "key": word},
        "apiKeys": {"existingSecret": word, "key": word},
        "tls": {"existingSecret": word},
        "model": {"pull": {"token": {"existingSecret": word, "key": word}, "storage": {"storageClassName": word}}},
        "imagePullSecrets": [{"name": word}],
        "serviceAccount": {"name": word},
        "priorityClassName": word,
        "runtimeClassName": word,
        "schedulerName": word,
        "head": {"storage": {"storageClassName": word}},
        "gateway": {"ingress": {"enabled": True, "hosts": ["a.example.com"], "className": word, "tlsSecret": word}},
        "networkPolicy": {"monitoringNamespace": word},
        "podLabels": {"a": word},
        "commonLabels": {"a": word},
    }
    if word[0].isalpha():
        texts |= {"fullnameOverride": word, "nameOverride": word, "expertGroups": {word: {"firstSeat": 200}}}
    for thing in rendered("fleet", texts):
        kubernetes_validate.validate(thing, chart.KUBERNETES[-1], strict=True)
