"""``expertfleet scale --statefulset``: a fleet on Kubernetes gets more or fewer pods, by the caller's own kubectl.

Knows nothing of pods but that the one of ordinal 3 sits on its role's seat 3. 1. kubectl says which seats the StatefulSet has; 2. if
some shall go, the fleet is asked whether the others hold the model; 3. kubectl scales; 4. with ``wait_s``, ``/status`` is asked
until these seats serve, those that shall go are gone, and everything is in its place.
"""

import json
import subprocess
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from ..errors import ClusterError
from .scale import open_client, reason, wait, wanted_seats
from .status import admin_url, get_json

ROLES = {"expert_shards": "expert", "attention_workers": "attention"}
_ROLE_LABEL = "app.kubernetes.io/component"
_MOST = 100  # seats that the chart gives a group
_KUBECTL_S = 60.0


@dataclass(frozen=True)
class StatefulSet:
    name: str
    role: str
    first: int
    replicas: int

    def seats(self, start: int, end: int) -> list[str]:
        """Of the pods from the ``start``-th on, before the ``end``-th."""
        return [f"{self.role}-{self.first + number}" for number in range(start, end)]


def scale_statefulset(
    name: str,
    namespace: str | None,
    wish: Mapping[str, float],
    url: str,
    api_key: str,
    wait_s: float,
    say: Callable[[str], None],
) -> None:
    """``wish`` is one of ROLES and a number. Raises ClusterError when it is refused, or not done within ``wait_s``; 0 does not wait."""
    role, count = _checked(wish)
    group = read_statefulset(name, namespace, role)
    with open_client(api_key) as client:
        admin = admin_url(client, url)
        if role == "expert" and count < group.replicas:
            _check_holds(client, admin, group, count)
        say(kubectl(namespace, "scale", "statefulset", name, f"--replicas={count}").strip())
        if wait_s:
            say(wait(client, admin, wait_s, lambda status: _has_become(status, group, count)))


def read_statefulset(name: str, namespace: str | None, role: str) -> StatefulSet:
    """As it is now. Raises ClusterError when its pods are not of ``role``."""
    found = json.loads(kubectl(namespace, "get", "statefulset", name, "--output=json"))
    is_of = found["metadata"].get("labels", {}).get(_ROLE_LABEL, "nobody")
    if is_of != role:
        raise ClusterError(f"--statefulset: {name} is {is_of}'s by its label {_ROLE_LABEL}, not {role}'s")
    spec = found["spec"]
    return StatefulSet(name, role, spec.get("ordinals", {}).get("start", 0), spec["replicas"])


def kubectl(namespace: str | None, *words: str) -> str:
    """What it printed. Raises ClusterError with its own last line when it failed."""
    where = ["-n", namespace] if namespace else []
    asked = f"kubectl {words[0]} {words[1]} {words[2]}"
    try:
        done = subprocess.run(
            ["kubectl", *words, *where], capture_output=True, text=True, timeout=_KUBECTL_S, check=False
        )
    except FileNotFoundError as error:
        raise ClusterError("--statefulset: kubectl is not on PATH; install it, or scale from where it is") from error
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"{asked}: no answer within {_KUBECTL_S:g} s") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"]
        raise ClusterError(f"{asked}: {lines[-1]}")
    return done.stdout


def _checked(wish: Mapping[str, float]) -> tuple[str, int]:
    if len(wish) != 1 or not (names := wish.keys() & ROLES.keys()):
        raise ClusterError(
            "--statefulset: is of one group of pods; give --expert-shards or --attention-workers with it, and nothing else"
        )
    (name,) = names
    if not 1 <= wish[name] <= _MOST:
        raise ClusterError(f"--{name.replace('_', '-')}: {wish[name]} is not within 1 to {_MOST}, the seats of a group")
    return ROLES[name], int(wish[name])


def _check_holds(client: httpx.Client, admin: str, group: StatefulSet, count: int) -> None:
    """Raises ClusterError with the smallest number that holds the model when ``count`` does not."""
    there = wanted_seats(get_json(client, f"{admin}/status"))

    def refusal(left: int) -> str:
        gone = [seat for seat in group.seats(left, group.replicas) if seat in there]
        if not gone:
            return ""
        reply = client.get(f"{admin}/scale", params={"without": gone})
        if reply.status_code not in (200, 400):
            raise ClusterError(reason(reply))
        return "" if reply.status_code == 200 else reason(reply)

    if why := refusal(count):
        fewest = count + 1 + bisect_left(range(count + 1, group.replicas), True, key=lambda left: not refusal(left))
        raise ClusterError(f"--expert-shards: {count} are too few for {group.name}, {fewest} would do ({why})")


def _has_become(status: Mapping[str, Any], group: StatefulSet, count: int) -> bool:
    states = {worker["seat"]: worker["state"] for worker in status["workers"]}
    serve = all(states.get(seat) == "ready" for seat in group.seats(0, count))
    gone = not any(seat in states for seat in group.seats(count, group.replicas))
    return bool(status["settled"]) and serve and gone
