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

# What all pods can be given.
RESTRICTED = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
ANOTHER = {
    "image": "registry.example.com/another@sha256:" + "1" * 64,
    "resources": {"requests": {"cpu": "1", "memory": "32Mi"}, "limits": {"cpu": "1", "memory": "32Mi"}},
    "securityContext": RESTRICTED,
    "volumeMounts": [{"name": "authority", "mountPath": "/etc/authority", "readOnly": True}],
}
POD: Values = {
    "podLabels": {"team": "serving"},
    "podAnnotations": {"example.com/scrape": "no"},
    "nodeSelector": {"kubernetes.io/arch": "amd64"},
    "tolerations": [{"key": "dedicated", "value": "models", "effect": "NoSchedule"}],
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}]
            }
        }
    },
    "schedulerName": "other",
    "podSecurityContext": {"runAsUser": 1000680000, "runAsGroup": 0, "fsGroup": 1000680000},
    "env": [
        {"name": "HTTPS_PROXY", "value": "http://proxy.example.com:3128"},
        {"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k", "optional": True}}},
        {"name": "REGION", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}},
        {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "CPUS", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
    ],
    "envFrom": [{"configMapRef": {"name": "common"}}, {"prefix": "A_", "secretRef": {"name": "s", "optional": True}}],
    "volumes": [{"name": "authority", "secret": {"secretName": "authority"}}],
    "volumeMounts": [{"name": "authority", "mountPath": "/etc/authority", "readOnly": True}],
    "initContainers": [{"name": "first", **ANOTHER}],
    "containers": [{"name": "beside", **ANOTHER}],
    "hostAliases": [{"ip": "10.0.0.9", "hostnames": ["models.example.com"]}, {"ip": "fd00::9", "hostnames": ["m6"]}],
    "dnsPolicy": "ClusterFirst",
    "dnsConfig": {
        "nameservers": ["10.0.0.53"],
        "searches": ["example.com"],
        "options": [{"name": "ndots", "value": "2"}],
    },
}


def own(role: str) -> Values:
    """What a role is given besides."""
    return {
        "podLabels": {"role-of-its-own": role},
        "tolerations": [{"key": role, "operator": "Exists"}],
        "env": [{"name": "HTTPS_PROXY", "value": f"http://{role}.example.com"}, {"name": "OWN", "value": role}],
        "volumes": [{"name": "scratch", "emptyDir": {"sizeLimit": "1Gi"}}],
        "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
        "hostAliases": [{"ip": "10.0.0.8", "hostnames": [f"{role}.example.com"]}],
        "priorityClassName": f"class-{role}",
    }


# Everything that can be switched on, so that every template has something to say.
EVERYTHING: Values = {
    "image": {"digests": {"cuda": "sha256:" + "0" * 64}},
    "imagePullSecrets": [{"name": "registry"}],
    "commonLabels": {"team": "serving"},
    "commonAnnotations": {"example.com/cost-centre": "12"},
    "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/a"}},
    "apiKeys": {"existingSecret": "keys"},
    **POD,
    "tls": {"existingSecret": "certificate"},
    "model": {
        "maxModelLen": 4096,
        "shared": {"existingClaim": "models"},
        "pull": {"token": {"existingSecret": "bearer"}, **own("pull")},
    },
    "head": own("head"),
    "attention": own("attention"),
    "expertShards": {"podAnnotations": {"a": "b"}, "replicas": None, **own("expert")},
    "expertGroups": {
        "gpu": {
            "runtimeClassName": "nvidia",
            "autoscaling": {"enabled": True, "metric": "gpu_shards_wanted", "selector": {"fleet": "a"}},
        }
    },
    "gateway": {
        "autoscaling": {"enabled": True, "metric": "requests"},
        "ingress": {
            "enabled": True,
            "className": "nginx",
            "hosts": ["llm.example.com"],
            "tlsSecret": "llm-tls",
            "labels": {"team": "edge"},
        },
        "image": {"tag": "1.2.2"},
        "host": "::",
        "service": {
            "type": "LoadBalancer",
            "nodePort": 30080,
            "ipFamilyPolicy": "PreferDualStack",
            "ipFamilies": ["IPv6", "IPv4"],
            "externalTrafficPolicy": "Local",
            "loadBalancerClass": "example.com/internal",
            "loadBalancerSourceRanges": ["10.0.0.0/8", "fd00::/8"],
            "labels": {"team": "edge"},
        },
        **own("gateway"),
    },
    "priorityClass": {"create": True},
    "networkPolicy": {
        "clients": [{"namespaceSelector": {"matchLabels": {"team": "chat"}}}],
        "egress": [{"to": [{"ipBlock": {"cidr": "10.9.0.0/16"}}], "ports": [{"port": 3128, "protocol": "TCP"}]}],
    },
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
    return json.dumps(read_objects(done.stdout))


def read_objects(text: str) -> list[Object]:
    """A template that says nothing is no object. A null inside of one, which Kubernetes' schemas let through, is a mistake."""
    objects = [thing for thing in yaml.safe_load_all(text) if thing is not None]
    found = [f"{thing['kind']} {path}" for thing in objects for path in nulls(thing)]
    assert not found, f"null: {', '.join(found)}"
    return objects


def nulls(thing: Any, path: str = "") -> Iterator[str]:
    """Where there are any."""
    if thing is None:
        yield path
    inner = thing.items() if isinstance(thing, dict) else enumerate(thing) if isinstance(thing, list) else ()
    for key, value in inner:
        yield from nulls(value, f"{path}.{key}")


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
