"""An API server without a cluster: it keeps the objects that real helm and kubectl binaries send it, and says each is as wished.

Knows nothing of the chart, and checks nothing: strict schemas do that elsewhere. It answers discovery, and reads, writes, patches, lists
and watches of the kinds in KINDS. What it does not know is a 404 that a test can look up in ``unknown``.
"""

import base64
import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

VERSION = {"major": "1", "minor": "33", "gitVersion": "v1.33.0"}
# (group version, resource, kind, in a namespace)
KINDS = (
    ("v1", "namespaces", "Namespace", False),
    ("v1", "nodes", "Node", False),
    ("v1", "secrets", "Secret", True),
    ("v1", "services", "Service", True),
    ("v1", "serviceaccounts", "ServiceAccount", True),
    ("v1", "configmaps", "ConfigMap", True),
    ("v1", "persistentvolumeclaims", "PersistentVolumeClaim", True),
    ("v1", "pods", "Pod", True),
    ("apps/v1", "statefulsets", "StatefulSet", True),
    ("apps/v1", "deployments", "Deployment", True),
    ("batch/v1", "jobs", "Job", True),
    ("autoscaling/v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler", True),
    ("policy/v1", "poddisruptionbudgets", "PodDisruptionBudget", True),
    ("networking.k8s.io/v1", "networkpolicies", "NetworkPolicy", True),
    ("networking.k8s.io/v1", "ingresses", "Ingress", True),
    ("scheduling.k8s.io/v1", "priorityclasses", "PriorityClass", False),
    ("monitoring.coreos.com/v1", "servicemonitors", "ServiceMonitor", True),
    ("admissionregistration.k8s.io/v1", "validatingadmissionpolicies", "ValidatingAdmissionPolicy", False),
    ("admissionregistration.k8s.io/v1", "validatingadmissionpolicybindings", "ValidatingAdmissionPolicyBinding", False),
)
_SCALED = ("statefulsets", "deployments")
_SHORT = {"persistentvolumeclaims": "pvc"}
_PATH = re.compile(
    r"^/(?:api|apis)/(?P<version>v1|[^/]+/v\d+)(?:/namespaces/(?P<space>[^/]+))?/(?P<resource>[a-z]+)"
    r"(?:/(?P<name>[^/]+))?(?:/(?P<sub>scale|status|log))?$"
)
_NAMESPACE = re.compile(r"^/api/v1/namespaces(?:/(?P<name>[^/]+))?$")

Object = dict[str, Any]
Key = tuple[str, str, str, str]  # group version, resource, namespace, name


class FakeCluster:
    def __init__(self) -> None:
        self.objects: dict[Key, Object] = {}
        self.unknown: list[str] = []
        self.asked: list[str] = []
        self.on_scale: Callable[[str, int], None] = lambda name, replicas: None
        # Why a StatefulSet (namespace, name) may not be scaled from one number to another; empty where it may.
        self.refusal: Callable[[str, str, int, int], str] = lambda namespace, name, before, after: ""
        self._scaled_by_hand: dict[Key, int] = {}
        self._lock = threading.RLock()
        self._version = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def write_kubeconfig(self, path: Path) -> None:
        cluster = {"name": "fake", "cluster": {"server": self.url}}
        context = {"name": "fake", "context": {"cluster": "fake", "user": "fake"}}
        config = {"apiVersion": "v1", "kind": "Config", "clusters": [cluster], "contexts": [context]}
        user = {"name": "fake", "user": {}}
        path.write_text(yaml.safe_dump({**config, "users": [user], "current-context": "fake"}))

    def add(self, thing: Object, namespace: str = "") -> Object:
        version, resource = next((v, r) for v, r, kind, _ in KINDS if kind == thing["kind"])
        return self._keep((version, resource, namespace, thing["metadata"]["name"]), thing)

    def names(self, kind: str, namespace: str = "") -> set[str]:
        resource = next(r for _, r, known, _ in KINDS if known == kind)
        return {key[3] for key in self.objects if key[1] == resource and key[2] == namespace}

    def get(self, kind: str, namespace: str, name: str) -> Object:
        version, resource = next((v, r) for v, r, known, _ in KINDS if known == kind)
        return self.objects[version, resource, namespace, name]

    def answer(
        self, method: str, path: str, query: dict[str, list[str]], body: Object | None, is_applied: bool = False
    ) -> tuple[int, Object]:
        with self._lock:
            self.asked.append(f"{method} {path}")
            found = _discovery(path)
            if found is not None:
                return 200, found
            place = _place(path)
            if place is None:
                self.unknown.append(f"{method} {path}")
                return _status(404, "NotFound", f"the fake cluster has no {path}")
            key, kind, sub = place
            if not key[3]:
                return self._create(key, kind, body) if method == "POST" else (200, self._list(key, kind, query))
            if key not in self.objects and method != "PATCH":
                return _status(404, "NotFound", f'{key[1]} "{key[3]}" not found')
            if method == "DELETE":
                return 200, self.objects.pop(key)
            if sub == "scale":
                return self._scale(key, body)
            if method == "PATCH" and body is not None:
                return self._patch(key, body, is_applied)
            if method == "PUT" and body is not None:
                return 200, self._keep(key, body)
            return 200, self.objects[key]

    def _patch(self, key: Key, body: Object, is_applied: bool) -> tuple[int, Object]:
        """An applied object is whole, but what somebody else scaled is theirs; a merged one takes away what is null."""
        before = self.objects.get(key)
        if not is_applied:
            return 200, self._keep(key, _patched(before or {}, body))
        theirs = self._scaled_by_hand.get(key)
        if theirs is not None and body["spec"].get("replicas", theirs) != theirs:
            return _status(409, "Conflict", 'conflict with "kubectl" with subresource "scale": .spec.replicas')
        spec = {} if theirs is None else {"replicas": theirs}
        return 200, self._keep(key, {**body, **({"spec": {**spec, **body["spec"]}} if "spec" in body else {})})

    def _create(self, key: Key, kind: str, body: Object | None) -> tuple[int, Object]:
        assert body is not None
        key = (*key[:3], body["metadata"]["name"])
        if key in self.objects:
            return _status(409, "AlreadyExists", f'{key[1]} "{key[3]}" already exists')
        return 201, self._keep(key, {"apiVersion": key[0], "kind": kind, **body})

    def _list(self, key: Key, kind: str, query: dict[str, list[str]]) -> Object:
        chosen = [
            thing
            for known, thing in self.objects.items()
            if known[:2] == key[:2] and key[2] in ("", known[2]) and _is_chosen(thing, query)
        ]
        version = {"resourceVersion": str(self._version)}
        return {"apiVersion": key[0], "kind": f"{kind}List", "metadata": version, "items": chosen}

    def _keep(self, key: Key, thing: Object) -> Object:
        self._version += 1
        had = self.objects.get(key)
        meta = {**thing["metadata"], "name": key[3], "resourceVersion": str(self._version), "uid": f"uid-{key[3]}"}
        meta |= {"generation": self._version, "creationTimestamp": "2026-01-01T00:00:00Z"}
        meta |= {"namespace": key[2]} if key[2] else {}
        kept = {**thing, "metadata": meta}
        if key[1] in _SCALED:
            before = had["spec"]["replicas"] if had else None
            kept["spec"] = {"replicas": 1, **kept["spec"]}
            kept["status"] = _as_wished(kept)
            if before not in (None, kept["spec"]["replicas"]):
                self.on_scale(key[3], kept["spec"]["replicas"])
        self.objects[key] = kept
        return kept

    def _scale(self, key: Key, body: Object | None) -> tuple[int, Object]:
        thing = self.objects[key]
        if body is not None and "spec" in body:
            wanted = body["spec"].get("replicas", 0)
            if refusal := self.refusal(key[2], key[3], thing["spec"]["replicas"], wanted):
                return _status(422, "Invalid", f"denied request: {refusal}")
            self._scaled_by_hand[key] = wanted
            thing = self._keep(key, {**thing, "spec": {**thing["spec"], "replicas": wanted}})
        replicas = thing["spec"]["replicas"]
        return 200, {
            "apiVersion": "autoscaling/v1",
            "kind": "Scale",
            "metadata": thing["metadata"],
            "spec": {"replicas": replicas},
            "status": {"replicas": replicas},
        }


def _as_wished(thing: Object) -> Object:
    count = thing["spec"]["replicas"]
    counts = dict.fromkeys(
        ("replicas", "readyReplicas", "updatedReplicas", "availableReplicas", "currentReplicas"), count
    )
    revisions = {"currentRevision": "1", "updateRevision": "1"}
    return {"observedGeneration": thing["metadata"]["generation"], **counts, **revisions}


def _is_chosen(thing: Object, query: dict[str, list[str]]) -> bool:
    meta = thing["metadata"]
    for selector in query.get("labelSelector", []):
        for name, value in re.findall(r"([^=,!]+)==?([^,]+)", selector):
            if meta.get("labels", {}).get(name) != value:
                return False
    return all(
        meta["name"] == name
        for one in query.get("fieldSelector", [])
        for name in re.findall(r"metadata.name=([^,]+)", one)
    )


def _patched(before: Object, patch: Object) -> Object:
    """Maps are merged, null takes a key away, all else is replaced."""
    merged = dict(before)
    for name, value in patch.items():
        known = merged.get(name)
        if value is None:
            merged.pop(name, None)
        elif isinstance(known, dict) and isinstance(value, dict):
            merged[name] = _patched(known, value)
        elif not name.startswith("$"):
            merged[name] = value
    return merged


def _place(path: str) -> tuple[Key, str, str] | None:
    if found := _NAMESPACE.match(path):
        return ("v1", "namespaces", "", found["name"] or ""), "Namespace", ""
    found = _PATH.match(path)
    if found is None:
        return None
    for version, resource, kind, _ in KINDS:
        if (version, resource) == (found["version"], found["resource"]):
            return (version, resource, found["space"] or "", unquote(found["name"] or "")), kind, found["sub"] or ""
    return None


def _discovery(path: str) -> Object | None:
    groups = sorted({version for version, *_ in KINDS if "/" in version})
    if path == "/version":
        return VERSION
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        listed = []
        for group_version in groups:
            version = {"groupVersion": group_version, "version": group_version.partition("/")[2]}
            listed.append({"name": group_version.partition("/")[0], "versions": [version], "preferredVersion": version})
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": listed}
    if path.startswith("/openapi/v3"):
        return _schema(path)
    for group_version in ("v1", *groups):
        if path == f"/{'apis' if '/' in group_version else 'api'}/{group_version}":
            return {
                "kind": "APIResourceList",
                "apiVersion": "v1",
                "groupVersion": group_version,
                "resources": [each for row in KINDS if row[0] == group_version for each in _resources(*row)],
            }
    return None


def _resources(version: str, resource: str, kind: str, namespaced: bool) -> list[Object]:
    verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
    listed = {"name": resource, "singularName": kind.lower(), "kind": kind, "namespaced": namespaced, "verbs": verbs}
    if resource in _SHORT:
        listed["shortNames"] = [_SHORT[resource]]
    if resource not in _SCALED:
        return [listed]
    scale = {"group": "autoscaling", "version": "v1", "kind": "Scale", "namespaced": True, "singularName": ""}
    return [listed, {**scale, "name": f"{resource}/scale", "verbs": ["get", "patch", "update"]}]


def _decoded(raw: bytes) -> Any:
    """JSON or YAML; of Kubernetes' own protobuf, in which Secrets come, the name, the labels and a Secret's data."""
    if not raw.startswith(b"k8s\x00"):
        return yaml.safe_load(raw)
    envelope = dict(_fields(raw[4:]))
    kind = dict(_fields(envelope[1]))[2].decode()
    fields = _fields(envelope[2])
    meta = _fields(dict(fields)[1])
    labels = {name: value.decode() for name, value in _entries(meta, 11)}
    data = {name: base64.b64encode(value).decode() for name, value in _entries(fields, 2)} if kind == "Secret" else {}
    return {"metadata": {"name": dict(meta)[1].decode(), "labels": labels}, **({"data": data} if data else {})}


def _entries(fields: list[tuple[int, bytes]], number: int) -> list[tuple[str, bytes]]:
    entries = [dict(_fields(value)) for each, value in fields if each == number]
    return [(entry[1].decode(), entry.get(2, b"")) for entry in entries]


def _fields(raw: bytes) -> list[tuple[int, bytes]]:
    """(number, content) of the fields of a protobuf message that have a length; others are passed over."""
    found, at = [], 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = raw[at]
            at, value, shift = at + 1, value | (byte & 0x7F) << shift, shift + 7
            if byte < 0x80:
                return value

    while at < len(raw):
        number, kind = divmod(varint(), 8)
        length = varint()
        if kind == 2:
            found.append((number, raw[at : at + length]))
            at += length
    return found


def _schema(path: str) -> Object:
    """OpenAPI that says one thing: the server itself validates fields, so that clients need not."""
    versions = {f"{'apis' if '/' in version else 'api'}/{version}": version for version, *_ in KINDS}
    if path == "/openapi/v3":
        return {"paths": {name: {"serverRelativeURL": f"/openapi/v3/{name}"} for name in versions}}
    paths = {}
    asked = versions[path.removeprefix("/openapi/v3/")]
    for version, resource, kind, _ in KINDS:
        if version == asked:
            group, _, number = version.rpartition("/")
            patch = {
                "parameters": [{"name": "fieldValidation", "in": "query"}],
                "x-kubernetes-group-version-kind": {"group": group, "version": number, "kind": kind},
                "responses": {},
            }
            paths[f"/{resource}"] = {"patch": patch}
    return {"openapi": "3.0.0", "info": {"title": "fake", "version": "1"}, "paths": paths}


def _bookmark(listed: Object) -> Object:
    meta = {**listed["metadata"], "annotations": {"k8s.io/initial-events-end": "true"}}
    return {"apiVersion": listed["apiVersion"], "kind": listed["kind"].removesuffix("List"), "metadata": meta}


def _status(code: int, why: str, message: str) -> tuple[int, Object]:
    return code, {
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "reason": why, "code": code,
    }  # fmt: skip


def _handler(cluster: FakeCluster) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            asked = urlsplit(self.path)
            query = parse_qs(asked.query)
            length = int(self.headers.get("content-length", 0))
            raw = self.rfile.read(length) if length else b""
            body = _decoded(raw) if raw and self.command != "DELETE" else None
            is_applied = "apply-patch" in self.headers.get("content-type", "")
            code, told = cluster.answer(self.command, asked.path, query, body, is_applied)
            if "watch" in query:
                lines = b""
                for item in told.get("items", []):
                    lines += json.dumps({"type": "ADDED", "object": item}).encode() + b"\n"
                if "sendInitialEvents" in query:
                    lines += json.dumps({"type": "BOOKMARK", "object": _bookmark(told)}).encode() + b"\n"
                self._reply(200, lines)
            else:
                self._reply(code, json.dumps(told).encode())

        def _reply(self, code: int, told: bytes) -> None:
            self.send_response(code)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(told)))
            self.end_headers()
            self.wfile.write(told)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve

        def log_message(self, *_: object) -> None:
            pass

    return Handler
