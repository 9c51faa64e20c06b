"""Values that are wrong are refused by both Helms, with a message that names the value.

Typos are drawn at every level of the schema and wrong types at every leaf of the defaults; the combinations are those that a
schema cannot say.
"""

import zlib
from typing import Any

import fleet_chart as chart
import pytest
from test_values import DEFAULTS, FREE, POD, SCHEMA, default_levels, levels, resolved

Path = tuple[str, ...]


def nested(path: Path, value: Any) -> Any:
    """``value`` at ``path``; a "0" is the first place of a list."""
    for key in reversed(path):
        value = [value] if key == "0" else {key: value}
    return value


def turn(path: Path) -> str:
    """One of the two Helms for each case, the same at every run."""
    return chart.HELMS[zlib.crc32(".".join(path).encode()) % len(chart.HELMS)]


def refused(version: str, values: chart.Values) -> str:
    if "expertGroups" in values:
        values = chart.over({"expertGroups": {"gpu": {"firstSeat": 100}}}, values)
    done = chart.template(version, "demo", values)
    assert done.returncode != 0, f"accepted: {values}"
    assert "nil pointer" not in done.stderr
    return done.stderr


def dotted(message: str) -> str:
    """Helm 3 writes a.b, Helm 4 /a/b."""
    return message.replace("/", ".")


def is_said_once(path: Path) -> bool:
    """What all pods have is tried at the top level; that a role's is the same is test_values.py's."""
    return not set(path[1:]) & POD or "containers" in path[:1]


LEVELS = sorted({path for path, _ in levels(SCHEMA) if is_said_once(path)})
LEAVES = sorted(
    (*path, key)
    for path, values in default_levels(DEFAULTS)
    for key, value in values.items()
    if not isinstance(value, dict) or key in FREE
)


def test_there_are_many_levels_and_leaves() -> None:
    assert len(LEVELS) >= 50
    assert len(LEAVES) >= 100


@pytest.mark.parametrize("path", LEVELS, ids=".".join)
def test_a_typo_is_named_at_every_level(path: Path) -> None:
    message = refused(turn(path), nested(path, {"replicsa": 1}))
    assert "replicsa" in message
    assert ".".join(path) in dotted(message)


def wrong(path: Path) -> Any:
    """A value of a type that this leaf does not take."""
    schema = SCHEMA
    for key in path:
        schema = resolved(schema)["properties"][key]
    kind = resolved(schema).get("type", "enum")
    taken = [kind] if isinstance(kind, str) else kind
    return {"a": {"b": "c"}} if "object" in taken else {"a": "map"} if "array" in taken else ["a", "list"]


@pytest.mark.parametrize("path", LEAVES[::2], ids=".".join)
def test_a_wrong_type_is_named(path: Path) -> None:
    message = refused(turn(path), nested(path, wrong(path)))
    assert path[-1] in message
    assert ".".join(path[:2]) in dotted(message)


SECRET_KEY = {"name": "a", "key": "b"}
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
OUT_OF_RANGE: dict[str, list[Any]] = {
    "expertShards.replicas": [0, -1, 101, 1.5, "2"],
    "expertShards.firstSeat": [50, 4000, -100],
    "expertShards.settings.device": ["gpu", "cuda:", "CPU"],
    "expertShards.settings.memoryGib": [0, "8Gi"],
    "expertShards.resources.limits.memory": ["12G", "12", "0Gi", 12],
    "expertShards.resources.limits.cpu": ["four", "0", "-1"],
    "attention.settings.drainS": [-1, None],
    "attention.settings.maxMicroBatches": [0, 9],
    "attention.settings.maxNumQueuedReqs": [-1, 1.5],
    "gateway.service.port": [0, 65536],
    "gateway.service.type": ["Loadbalancer"],
    "gateway.settings.accessLog": ["yes", 1],
    "gateway.ingress.hosts": [["https://llm.example.com"]],
    "image.pullPolicy": ["Sometimes"],
    "imagePullSecrets": [
        ["registry"],
        [{"name": ""}],
        [{"nmae": "registry"}],
        [None],
        [{"name": "a..b"}],
        [{"name": "a.-b"}],
    ],
    "image.repository": ["https://registry.example.com/a", "a/b:1.0", "a/b/", "a@sha256:" + "1" * 64, "a//b"],
    "model.hostPath.path": ["models", "/srv/../models", "/srv/.."],
    "model.subPath": ["/models", "a/", "a//b", "../b", "a/../b", "a/.b", "a b"],
    "model.shared.subPath": ["a/./b"],
    "gateway.host": ["127.0.0.1", "[::]", "", "10.0.0.1"],
    "gateway.service.ipFamilies": [["IPv5"], ["IPv4", "IPv4"], "IPv4"],
    "gateway.service.nodePort": [0, 70000],
    "gateway.service.loadBalancerSourceRanges": [["10.0.0.0"], ["999.0.0.0/8"], ["10.0.0.0/33"], ["fd00::/129"]],
    "podSecurityContext": [["a"], {"runAsUser": 0}, {"runAsUser": "1000"}, {"runAsNonRoot": False}, {"runasUser": 1}],
    "podSecurityContext.fsGroup": [2147483648, 4294967294, "1234"],
    "podSecurityContext.seccompProfile": [{"type": "Localhost"}, {"type": "Unconfined", "localhostProfile": "a"}],
    "securityContext": [{"runAsUser": 0}, {"readOnlyRootFilesystem": "no"}],
    "podLabels": [{"a": 1}, {"a b": "c"}, {"a": "b c"}, {"a": "x" * 64}, {"-a": "b"}],
    "podAnnotations": [{"a": True}, {"a b": "c"}],
    "nodeSelector": [{"a": 1}, {"a": "b/c"}],
    "tolerations": [
        [{"key": "a", "operator": "Exits"}],
        {"key": "a"},
        [{"key": "a b"}],
        [{"key": "a", "value": "b c"}],
    ],
    "affinity": [{"nodeAffinty": {}}, {"podAffinity": []}],
    "affinity.nodeAffinity": [
        {REQUIRED: {"nodeSelectorTerm": []}},
        {REQUIRED: {"nodeSelectorTerms": []}},
        {REQUIRED: {"nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "Gt", "values": [3]}]}]}},
        {PREFERRED: [{"preference": {}}]},
    ],
    "affinity.podAntiAffinity": [
        {REQUIRED: {"topologyKey": "zone"}},
        {REQUIRED: [{"labelSelector": {}}]},
        {REQUIRED: [{"topologyKey": "zone", "labelSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}]},
        {PREFERRED: [{"weight": 101, "podAffinityTerm": {"topologyKey": "zone"}}]},
    ],
    "env": [{"A": "1"}, [{"value": "1"}], [{"name": "A", "value": 1}], [{"name": "A=B", "value": ""}]],
    "env.0.valueFrom": [
        {},
        {"secretKeyRef": {"name": "a"}},
        {"secretKeyRef": SECRET_KEY, "configMapKeyRef": SECRET_KEY},
    ],
    "envFrom": [[{}], [{"secretRef": {"name": "a"}, "configMapRef": {"name": "a"}}], [{"secretRef": {}}]],
    "volumes": [[{"name": "a"}], [{"name": "A", "emptyDir": {}}], [{"name": "a", "emptyDir": {"sizeLimit": None}}]],
    "volumes.0.name": ["A"],
    "volumes.0.secret": [{"name": "a"}, {}],
    "volumes.0.configMap": [{}, {"name": "a", "items": [{"key": "a", "path": "../a"}]}],
    "volumes.0.persistentVolumeClaim": [{"name": "a"}],
    "volumes.0.hostPath": [{}, {"path": "/a/../b"}, {"path": ""}],
    "volumes.0.emptyDir": [{"size": "1Gi"}],
    "volumeMounts": [
        [{"name": "a", "mountPath": "a"}],
        [{"name": "a"}],
        [{"name": "a", "mountPath": "/a", "subPath": "../b"}],
        [{"name": "a", "mountPath": "/a", "subPath": "b", "subPathExpr": "c"}],
    ],
    "containers.0.ports": [[{"port": 80}], [{"containerPort": 0}]],
    "containers": [[{"name": "a"}], [{"name": "a.b", "image": "c"}], [{"name": "a", "image": "c", "ports": 80}]],
    "model.pull.containers": [[{"name": "a", "image": "c"}]],
    "hostAliases": [
        [{"ip": "host", "hostnames": ["a"]}],
        [{"ip": "10.0.0.1", "hostnames": []}],
        [{"ip": "999.0.0.1", "hostnames": ["a"]}],
        [{"ip": ":", "hostnames": ["a"]}],
        [{"ip": "10.0.0.1", "hostnames": ["a..b"]}],
    ],
    "dnsConfig.nameservers": [["dns.example.com"], ["10.0.0.1"] * 4],
    "dnsPolicy": ["Cluster"],
    "priorityClassName": ["High Priority"],
    "serviceAccount.name": ["A"],
    "networkPolicy.egress": [[{}], [{"ports": [{"port": 0}]}], [{"ports": [{"port": "http", "endPort": 9}]}]],
    "networkPolicy.clients": [
        [{"ipBlock": {"cidr": "10.0.0.0"}}],
        [{"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}],
    ],
    "expertShards.resources.limits": [
        {"nvidia.com/gpu": 0},
        {"nvidia.com/gpu": "one"},
        {"nvidia.com/gpu": 0.5},
        {"/gpu": 1},
        {"gpu": 1},
    ],
    "image.digests.cpu": ["sha256:12"],
    "clusterToken.existingSecret": ["Fleet Token"],
    "dtype": ["float16"],
    "expertReplicas": [0.5],
    "fullnameOverride": ["a" * 33, "Fleet"],
    "topologySpreadConstraints": [[{"topologyKey": "zone", "maxSkew": 1, "whenUnsatisfiable": "Never"}]],
    "metrics.serviceMonitor.interval": ["15"],
    "priorityClass.value": [1000000001],
}


@pytest.mark.parametrize(("path", "value"), [(path, value) for path in OUT_OF_RANGE for value in OUT_OF_RANGE[path]])
def test_a_value_out_of_range_is_named(path: str, value: Any) -> None:
    keys = tuple(path.split("."))
    message = refused(turn((*keys, str(value))), nested(keys, value))
    assert keys[-1] in message


GPU = {"settings": {"device": "cuda"}}
TWO_GIB_SHORT = {
    "settings": {"memoryGib": 6},
    "resources": {"requests": {"memory": "7Gi"}, "limits": {"memory": "7Gi"}},
}
GPU_AMOUNTS = {
    "requests": {"cpu": "1", "memory": "8Gi", "nvidia.com/gpu": 2},
    "limits": {"cpu": "1", "memory": "8Gi", "nvidia.com/gpu": 1},
}
SPREAD = {"topologyKey": "zone", "maxSkew": 1, "whenUnsatisfiable": "ScheduleAnyway"}
LABELLED = {"podLabels": {"a": "b"}}
ALIAS = {"ip": "10.0.0.9", "hostnames": ["a"]}
BESIDE = {"name": "a", "image": "a"}
DOWNWARDS = {"port": 5, "endPort": 1}
COMBINATIONS: list[tuple[str, chart.Values]] = [
    ("image.repository: empty", {"image": {"repository": ""}}),
    ("image.tag: latest", {"image": {"tag": "latest"}}),
    ("gateway.image.tag: latest", {"gateway": {"image": {"tag": "latest"}}}),
    ("image.tag: 0.2.0 is given", {"image": {"tag": "0.2.0", "digests": {"cpu": "sha256:" + "1" * 64}}}),
    ("clusterToken.existingSecret: empty", {"clusterToken": {"existingSecret": ""}}),
    ("apiKeys.existingSecret: empty", {"apiKeys": {"open": False}}),
    ("apiKeys.open: true serves", {"apiKeys": {"existingSecret": "keys"}}),
    ("model.source: empty", {"model": {"source": ""}}),
    ("model.existingClaim.name: empty", {"model": {"source": "existingClaim"}}),
    ("model.hostPath.path: empty", {"model": {"source": "hostPath"}}),
    ("model.pull.url: empty", {"model": {"source": "pull", "subPath": "k2"}}),
    ("model.subPath: empty", {"model": {"source": "pull", "pull": {"url": "https://models.example.com/k2"}}}),
    ("model.subPath: k2 is given", {"model": {"subPath": "k2"}}),
    ("model.hostPath.path: /k2 is given", {"model": {"hostPath": {"path": "/k2"}}}),
    ("model.existingClaim.name: k2 is given", {"model": {"existingClaim": {"name": "k2"}}}),
    ("model.shared.existingClaim: k2 is given", {"model": {"shared": {"existingClaim": "k2"}}}),
    ("model.shared.subPath: k2 is given", {"model": {"shared": {"subPath": "k2"}}}),
    ("model.pull.token.existingSecret: hf is given", {"model": {"pull": {"token": {"existingSecret": "hf"}}}}),
    ("model.pull.url: http://a is given", {"model": {"pull": {"url": "http://a"}}}),
    ("expertReplicas: 3", {"expertReplicas": 3}),
    ("expertShards.replicas: 2", {"expertShards": {"minReplicas": 3}}),
    ("expertGroups.gpu.firstSeat: 0", {"expertGroups": {"gpu": {"firstSeat": 0}}}),
    ("expertGroups.gpu.replicas: 1", {"expertGroups": {"gpu": {"replicas": 1, "minReplicas": 2}}}),
    ("expertGroups.gpu.settings.device: cuda wants", {"expertGroups": {"gpu": GPU}}),
    ("expertShards.settings.device: cuda wants", {"expertShards": GPU}),
    ("expertShards.settings.device: cpu leaves", {"expertShards": {"resources": {"limits": {"nvidia.com/gpu": 1}}}}),
    (
        "expertShards.settings.device: cpu leaves the nvidia.com/mig-1g.10gb",
        {"expertShards": {"resources": {"limits": {"nvidia.com/mig-1g.10gb": 1}}}},
    ),
    (
        "attention.resources: the CPU leaves the amd.com/gpu",
        {"attention": {"resources": {"limits": {"amd.com/gpu": 1}}}},
    ),
    ("head.resources: the CPU leaves", {"head": {"resources": {"limits": {"gpu.intel.com/i915": 1}}}}),
    ("expertShards.settings.backend: triton", {"expertShards": {"settings": {"backend": "triton"}}}),
    (
        "expertShards.settings.backend: reference",
        {"expertShards": {"settings": {**GPU["settings"], "backend": "reference"}}},
    ),
    ("expertShards.settings.threads: 2", {"expertShards": {"settings": {"threads": 2}}}),
    ("attention.settings.threads: 2", {"attention": {"settings": {"threads": 2}}}),
    ("expertShards.settings.memoryGib: 6", {"expertShards": TWO_GIB_SHORT}),
    ("attention.settings.cacheGib: 1", {"attention": {"settings": {"cacheGib": 1}}}),
    ("expertShards.resources.requests.memory: 2304Mi", {"expertShards": {"resources": {"limits": {"memory": "4Gi"}}}}),
    ("model.pull.resources.requests.cpu: 5", {"model": {"pull": {"resources": {"requests": {"cpu": 5}}}}}),
    ("head.resources.requests.cpu: 1500m are", {"head": {"resources": {"requests": {"cpu": "1500m"}}}}),
    ("head.resources.requests.memory: 2Gi is more", {"head": {"resources": {"requests": {"memory": "2Gi"}}}}),
    ("gateway.resources.requests.memory: 1Ti is more", {"gateway": {"resources": {"requests": {"memory": "1Ti"}}}}),
    ("attention.resources.requests.cpu: 2 are", {"attention": {"resources": {"requests": {"cpu": "2"}}}}),
    (
        "expertShards.resources.requests.ephemeral-storage: 1Gi is given",
        {"expertShards": {"resources": {"requests": {"ephemeral-storage": "1Gi"}}}},
    ),
    (
        "expertGroups.gpu.resources.requests.nvidia.com/gpu: 2 must be the 1",
        {"expertGroups": {"gpu": {**GPU, "resources": GPU_AMOUNTS}}},
    ),
    ("expertShards.autoscaling.minReplicas: 1", {"expertShards": {"minReplicas": 2, "autoscaling": {"enabled": True}}}),
    ("expertShards.autoscaling.maxReplicas: 8", {"expertShards": {"autoscaling": {"enabled": True, "minReplicas": 9}}}),
    ("gateway.autoscaling.maxReplicas: 1", {"gateway": {"autoscaling": {"enabled": True, "maxReplicas": 1}}}),
    (
        "expertShards.autoscaling.metric: expertfleet_wanted_expert_shards",
        {"expertShards": {"autoscaling": {"enabled": True}}, "expertGroups": {"gpu": {}}},
    ),
    ("gateway.ingress.hosts: given", {"gateway": {"ingress": {"hosts": ["llm.example.com"]}}}),
    ("gateway.ingress.tlsSecret: given", {"gateway": {"ingress": {"tlsSecret": "llm-tls"}}}),
    ("networkPolicy.egress: given", {"networkPolicy": {"enabled": False, "egress": [{"ports": [{"port": 1}]}]}}),
    ("gateway.ingress.labels: given", {"gateway": {"ingress": {"labels": {"a": "b"}}}}),
    ("gateway.ingress.annotations: given", {"gateway": {"ingress": {"annotations": {"a": "b"}}}}),
    ("serviceAccount.annotations: given", {"serviceAccount": {"create": False, "annotations": {"a": "b"}}}),
    ("gateway.host: 0.0.0.0 listens", {"gateway": {"service": {"ipFamilies": ["IPv6"]}}}),
    ("gateway.host: 0.0.0.0 listens", {"gateway": {"service": {"ipFamilyPolicy": "RequireDualStack"}}}),
    (
        "gateway.service.ipFamilyPolicy: SingleStack is one",
        {"gateway": {"host": "::", "service": {"ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4", "IPv6"]}}},
    ),
    (
        "gateway.service.ipFamilyPolicy: empty is one",
        {"gateway": {"host": "::", "service": {"ipFamilies": ["IPv6", "IPv4"]}}},
    ),
    ("gateway.service.nodePort: 30000 is given", {"gateway": {"service": {"nodePort": 30000}}}),
    ("gateway.service.externalTrafficPolicy: Local", {"gateway": {"service": {"externalTrafficPolicy": "Local"}}}),
    ("gateway.service.loadBalancerClass: given", {"gateway": {"service": {"loadBalancerClass": "a/b"}}}),
    (
        "gateway.service.loadBalancerSourceRanges: given",
        {"gateway": {"service": {"type": "NodePort", "loadBalancerSourceRanges": ["10.0.0.0/8"]}}},
    ),
    ("commonLabels: helm.sh/chart is the chart's own", {"commonLabels": {"helm.sh/chart": "a"}}),
    (
        "podLabels: app.kubernetes.io/component is the chart's own",
        {"podLabels": {"app.kubernetes.io/component": "a"}},
    ),
    (
        "podLabels: app.kubernetes.io/name is the chart's own",
        {
            "podLabels": {"app.kubernetes.io/name": "a"},
            "model": {"pull": LABELLED},
            **dict.fromkeys(("head", "attention", "gateway", "expertShards"), LABELLED),
        },
    ),
    ("metrics.dashboard.labels: helm.sh/chart is", {"metrics": {"dashboard": {"labels": {"helm.sh/chart": "a"}}}}),
    ("commonAnnotations: helm.sh/hook is Helm's own", {"commonAnnotations": {"helm.sh/hook": "pre-install"}}),
    ("commonAnnotations: meta.helm.sh/release-name", {"commonAnnotations": {"meta.helm.sh/release-name": "a"}}),
    ("expertGroups.main: expertShards is the group main", {"expertGroups": {"main": {"firstSeat": 200}}}),
    ("imagePullSecrets: a is given twice", {"imagePullSecrets": [{"name": "a"}, {"name": "b"}, {"name": "a"}]}),
    (
        "gateway.hostAliases: 10.0.0.9 is given twice",
        {"hostAliases": [ALIAS], "gateway": {"hostAliases": [{**ALIAS, "hostnames": ["b"]}]}},
    ),
    ("head.dnsPolicy: None wants dnsConfig.nameservers", {"head": {"dnsPolicy": "None"}}),
    (
        "topologySpreadConstraints: zone ScheduleAnyway is given twice",
        {"topologySpreadConstraints": [SPREAD, {**SPREAD, "maxSkew": 2}]},
    ),
    (
        "gateway.containers: the container a mounts keys",
        {"gateway": {"containers": [{**BESIDE, "volumeMounts": [{"name": "keys", "mountPath": "/keys"}]}]}},
    ),
    (
        "initContainers: the container a, env: A is given twice",
        {"initContainers": [{**BESIDE, "env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]}]},
    ),
    (
        "containers: the container a, volumeMounts: /a is given twice",
        {"containers": [{**BESIDE, "volumeMounts": [{"name": "tmp", "mountPath": "/a"}] * 2}]},
    ),
    ("securityContext: privileged: true does not go", {"securityContext": {"privileged": True}}),
    (
        "gateway.securityContext: the capability SYS_ADMIN",
        {"gateway": {"securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}}},
    ),
    ("networkPolicy.egress: endPort 1 is less than port 5", {"networkPolicy": {"egress": [{"ports": [DOWNWARDS]}]}}),
    (
        "volumeMounts: /etc is taken already",
        {"volumes": [{"name": "a", "emptyDir": {}}], "volumeMounts": [{"name": "a", "mountPath": "/etc"}]},
    ),
    ("gateway.podLabels: expertfleet/group is", {"gateway": {"podLabels": {"expertfleet/group": "a"}}}),
    (
        "gateway.service.labels: app.kubernetes.io/name is",
        {"gateway": {"service": {"labels": {"app.kubernetes.io/name": "a"}}}},
    ),
    ("env: HOME is the chart's own", {"env": [{"name": "HOME", "value": "/"}]}),
    ("attention.env: POD_IP is the chart's own", {"attention": {"env": [{"name": "POD_IP", "value": "10.0.0.1"}]}}),
    ("gateway.env: EXPERTFLEET_PORT is a setting", {"gateway": {"env": [{"name": "EXPERTFLEET_PORT", "value": "1"}]}}),
    ("env: RAY_AUTH_MODE would have no effect", {"env": [{"name": "RAY_AUTH_MODE", "value": "disabled"}]}),
    ("env: A is given twice", {"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]}),
    (
        "head.env: A has a value and a valueFrom",
        {"head": {"env": [{"name": "A", "value": "1", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}]}},
    ),
    ("volumes: tmp is the name of a volume", {"volumes": [{"name": "tmp", "emptyDir": {}}]}),
    (
        "gateway.volumes: a is given twice",
        {"volumes": [{"name": "a", "emptyDir": {}}], "gateway": {"volumes": [{"name": "a", "emptyDir": {}}]}},
    ),
    ("head.volumeMounts: no volume", {"head": {"volumeMounts": [{"name": "a", "mountPath": "/a"}]}}),
    (
        "volumeMounts: no volume among volumes is named a",
        {"volumeMounts": [{"name": "a", "mountPath": "/a"}], "gateway": {"volumes": [{"name": "a", "emptyDir": {}}]}},
    ),
    (
        "volumeMounts: /tmp/ is taken already",
        {"volumes": [{"name": "a", "emptyDir": {}}], "volumeMounts": [{"name": "a", "mountPath": "/tmp/"}]},
    ),
    (
        "volumeMounts: /a is taken already",
        {
            "volumes": [{"name": "a", "emptyDir": {}}],
            "volumeMounts": [{"name": "a", "mountPath": "/a"}, {"name": "a", "mountPath": "/a"}],
        },
    ),
    (
        "gateway.containers: there is a container gateway",
        {"gateway": {"containers": [{"name": "gateway", "image": "a"}]}},
    ),
    (
        "containers: there is a container a already",
        {"initContainers": [{"name": "a", "image": "a"}], "containers": [{"name": "a", "image": "a"}]},
    ),
    (
        "tolerations: a has the operator Exists",
        {"tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]},
    ),
    ("head.tolerations: one without a key", {"head": {"tolerations": [{"value": "b"}]}}),
    ("tolerations: a has tolerationSeconds", {"tolerations": [{"key": "a", "tolerationSeconds": 3}]}),
    (
        "attention.topologySpreadConstraints: zone has minDomains",
        {"attention": {"topologySpreadConstraints": [{**SPREAD, "minDomains": 2}]}},
    ),
    ("networkPolicy.clients: given", {"networkPolicy": {"enabled": False, "clients": [{"podSelector": {}}]}}),
    ("gateway.ingress.hosts: empty", {"gateway": {"ingress": {"enabled": True}}}),
    ("metrics.serviceMonitor.enabled: true", {"metrics": {"serviceMonitor": {"enabled": True}}}),
]


@pytest.mark.parametrize(("sentence", "values"), COMBINATIONS, ids=[sentence for sentence, _ in COMBINATIONS])
def test_an_impossible_combination_is_refused_with_a_sentence(sentence: str, values: chart.Values) -> None:
    message = refused(turn((sentence,)), values)
    assert f"\n{sentence}" in message
    assert message.count(": ") >= 2


@pytest.mark.parametrize("version", chart.HELMS)
@pytest.mark.parametrize("nothing", ["", None])
def test_all_sentences_come_at_once(nothing: str | None, version: str) -> None:
    secret = {"existingSecret": nothing}
    values: chart.Values = {"image": {"repository": nothing}, "model": {"source": nothing}}
    values |= {"clusterToken": secret, "apiKeys": secret}
    done = chart.run_helm(version, "template", "fleet", str(chart.CHART), values=values)
    for value in ("image.repository", "clusterToken.existingSecret", "apiKeys.existingSecret", "model.source"):
        assert f"\n{value}: empty" in done.stderr


def test_a_group_needs_seats_of_its_own_and_a_name_that_kubernetes_takes() -> None:
    assert "firstSeat" in chart.template("3", "demo", {"expertGroups": {"gpu": {"replicas": 1}}}).stderr
    assert "GPU" in refused("4", {"expertGroups": {"GPU": {"firstSeat": 100}}})
