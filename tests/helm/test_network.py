"""Who reaches whom, worked out from the policies as a network plugin would."""

from typing import Any

import fleet_chart as chart
import pytest


def selects(selector: Any, labels: dict[str, str]) -> bool:
    if not selector.get("matchLabels", {}).items() <= labels.items():
        return False
    for rule in selector.get("matchExpressions", ()):
        assert rule["operator"] == "In"
        if labels.get(rule["key"]) not in rule["values"]:
            return False
    return True


class Network:
    """Pods of the release by role, and two others of its namespace; pods elsewhere are a namespace's name."""

    def __init__(self, objects: list[chart.Object]) -> None:
        self.policies = [thing["spec"] for thing in chart.of_kind(objects, "NetworkPolicy")]
        self.labels: dict[str, dict[str, str]] = {}
        self.ports: dict[str, dict[str, int]] = {}
        for _, pod in chart.pods(objects):
            role = pod["metadata"]["labels"]["app.kubernetes.io/component"]
            self.labels[role] = pod["metadata"]["labels"]
            named = [port for container in pod["spec"]["containers"] for port in container.get("ports", ())]
            self.ports[role] = {port["name"]: port["containerPort"] for port in named}
        self.labels["neighbour"] = {"app.kubernetes.io/name": "web"}
        self.labels["another release"] = {**self.labels["expert"], "app.kubernetes.io/instance": "other"}

    def reaches(self, source: str, target: str, port: int) -> bool:
        out = source not in self.labels or self._allowed(source, "Egress", target, target, port)
        return out and (target not in self.labels or self._allowed(target, "Ingress", source, target, port))

    def _allowed(self, role: str, direction: str, peer: str, target: str, port: int) -> bool:
        chosen = [
            policy
            for policy in self.policies
            if selects(policy["podSelector"], self.labels[role]) and direction in policy["policyTypes"]
        ]
        if not chosen:
            return True
        key, side = direction.lower(), "from" if direction == "Ingress" else "to"
        return any(
            (side not in rule or any(self._is(peer, wanted) for wanted in rule[side]))
            and self._has_port(rule, target, port)
            for policy in chosen
            for rule in policy.get(key, ())
        )

    def _is(self, peer: str, wanted: Any) -> bool:
        if peer in self.labels:
            return "namespaceSelector" not in wanted and selects(wanted["podSelector"], self.labels[peer])
        name = {"kubernetes.io/metadata.name": peer}
        return "namespaceSelector" in wanted and selects(wanted["namespaceSelector"], name)

    def _has_port(self, rule: Any, target: str, port: int) -> bool:
        names = self.ports.get(target, {})
        return "ports" not in rule or port in [names.get(p["port"], p["port"]) for p in rule["ports"]]


NETWORK = Network(chart.render("k2-hybrid"))
RAY = ("head", "attention", "expert")
OPEN = [
    *((source, target, port) for source in RAY for target in RAY for port in (6379, 7411, 7412, 34567)),
    ("gateway", "head", 7411),
    ("gateway", "attention", 7412),
    ("head", "gateway", 8000),
    ("anybody", "gateway", 8000),
    ("monitoring", "gateway", 8001),
    *((role, "kube-system", 53) for role in (*RAY, "gateway")),
    ("pull", "internet", 443),
]
SHUT = [
    *(
        (stranger, role, port)
        for stranger in ("anybody", "neighbour", "another release")
        for role in RAY
        for port in (6379, 7411, 7412, 34567)
    ),
    *((stranger, "gateway", 8001) for stranger in ("neighbour", "another release", "expert", "head")),
    *(("monitoring", role, 7412) for role in RAY),
    ("anybody", "gateway", 8001),
    ("gateway", "expert", 7412),
    ("gateway", "head", 6379),
    ("attention", "gateway", 8001),
    ("anybody", "pull", 80),
    *((role, "internet", 443) for role in (*RAY, "gateway")),
    ("pull", "head", 7411),
]


@pytest.mark.parametrize(("source", "target", "port"), OPEN)
def test_what_a_role_needs_is_open(source: str, target: str, port: int) -> None:
    assert NETWORK.reaches(source, target, port)


@pytest.mark.parametrize(("source", "target", "port"), SHUT)
def test_everything_else_is_shut(source: str, target: str, port: int) -> None:
    assert not NETWORK.reaches(source, target, port)


def test_clients_can_be_named() -> None:
    clients = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "chat"}}}]
    network = Network(chart.render("k2-hybrid", {"networkPolicy": {"clients": clients}}))
    assert network.reaches("chat", "gateway", 8000)
    assert network.reaches("head", "gateway", 8000)
    assert not network.reaches("anybody", "gateway", 8000)
    assert not network.reaches("chat", "gateway", 8001)


def test_policies_can_be_left_out() -> None:
    assert not chart.of_kind(chart.render("demo", {"networkPolicy": {"enabled": False}}), "NetworkPolicy")
