"""The chart as the tests see it: values in, Kubernetes objects out, by real Helm binaries of both major versions.

Knows nothing of what the objects should say.
"""

import json
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "expertfleet"
BINARIES = ROOT / ".venv" / "helm"
HELMS = ("3", "4")
PRESETS = ("demo", "k2-hybrid")
# What Chart.yaml promises, and the newest there are schemas for.
KUBERNETES = ("1.30", "1.37")

Values = dict[str, Any]
Object = dict[str, Any]

# Everything that can be switched on, so that every template has something to say.
EVERYTHING: Values = {
    "image": {"digests": {"cuda": "sha256:" + "0" * 64}},
    "imagePullSecrets": ["registry"],
    "apiKeys": {"existingSecret": "keys"},
    "tls": {"existingSecret": "certificate"},
    "model": {
        "maxModelLen": 4096,
        "shared": {"existingClaim": "models"},
        "pull": {"token": {"existingSecret": "bearer"}},
    },
    "expertShards": {"podAnnotations": {"a": "b"}, "replicas": None},
    "expertGroups": {
        "gpu": {
            "runtimeClassName": "nvidia",
            "autoscaling": {"enabled": True, "metric": "gpu_shards_wanted", "selector": {"fleet": "a"}},
        }
    },
    "gateway": {
        "autoscaling": {"enabled": True, "metric": "requests"},
        "ingress": {"enabled": True, "className": "nginx", "hosts": ["llm.example.com"], "tlsSecret": "llm-tls"},
        "image": {"tag": "1.2.2"},
    },
    "priorityClass": {"create": True},
    "networkPolicy": {"clients": [{"namespaceSelector": {"matchLabels": {"team": "chat"}}}]},
    "metrics": {"serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}}},
}
PROMETHEUS = ("--api-versions", "monitoring.coreos.com/v1")


def run_helm(version: str, *arguments: str, values: Values | None = None) -> subprocess.CompletedProcess[str]:
    """``values`` lie over those of files among the arguments."""
    binary = BINARIES / version / "helm"
    assert binary.exists(), f"{binary} is not there; `make dev` fetches it"
    given = ["--values", "-"] if values is not None else []
    return subprocess.run(
        [str(binary), *arguments, *given],
        input=json.dumps(values) if values is not None else None,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def preset_file(preset: str) -> str:
    return str(CHART / f"values-{preset}.yaml")


def template(
    version: str, preset: str, values: Values | None = None, *options: str
) -> subprocess.CompletedProcess[str]:
    arguments = ["template", "fleet", str(CHART), "--namespace", "serving", "--values", preset_file(preset), *options]
    return run_helm(version, *arguments, values=values)


def render(preset: str = "demo", values: Values | None = None, *options: str, version: str = "4") -> list[Object]:
    return json.loads(_rendered(preset, json.dumps(values), options, version))  # type: ignore[no-any-return]


def render_everything(version: str = "4") -> list[Object]:
    return render("k2-hybrid", EVERYTHING, *PROMETHEUS, version=version)


@cache
def _rendered(preset: str, values: str, options: tuple[str, ...], version: str) -> str:
    done = template(version, preset, json.loads(values), *options)
    assert done.returncode == 0, done.stderr
    return json.dumps([thing for thing in yaml.safe_load_all(done.stdout) if thing is not None])


def named(objects: list[Object], kind: str, name: str) -> Object:
    """The one object of this kind and name, without the name that all share."""
    (found,) = (
        thing for thing in objects if thing["kind"] == kind and thing["metadata"]["name"] == f"fleet-expertfleet{name}"
    )
    return found


def of_kind(objects: list[Object], kind: str) -> list[Object]:
    return [thing for thing in objects if thing["kind"] == kind]


def pods(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """(name of its owner, pod template) of everything that runs."""
    for thing in objects:
        if thing["kind"] in ("StatefulSet", "Deployment", "Job"):
            yield thing["metadata"]["name"], thing["spec"]["template"]


def containers(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    for owner, pod in pods(objects):
        for container in (*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]):
            yield f"{owner}/{container['name']}", container


def over(below: Values, above: Values) -> Values:
    """As Helm lays one values file over another."""
    merged = dict(below)
    for key, value in above.items():
        known = merged.get(key)
        merged[key] = over(known, value) if isinstance(known, dict) and isinstance(value, dict) else value
    return merged
