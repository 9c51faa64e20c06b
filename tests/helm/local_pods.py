"""Rendered pods as processes of this machine: each with a loopback address of its own, its volumes in a folder of its own.

Knows nothing of what runs in them. What a node of Kubernetes would do is done here: variables and addresses are filled in, probes
asked, SIGTERM sent and the grace period kept.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import fleet_chart as chart
import httpx

from expertfleet.cluster.guard import alive, descendants
from expertfleet.demo.bundled import NANO_K2

TOKEN = "a token that these tests alone know"
HEAD_IP = "127.0.0.2"
_IMAGE = {"/opt/expertfleet/nano-k2": str(NANO_K2)}


def until(condition: Callable[[], Any], timeout_s: float, what: str = "") -> Any:
    give_up = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < give_up, f"not within {timeout_s} s: {what}"
        time.sleep(0.1)
    return value


class Pod:
    """One process, started from its container as it stands in the chart; ``build`` is the folder that holds the package."""

    def __init__(
        self, template: chart.Object, ip: str, index: int, folder: Path, ports: Mapping[int, int], build: Path
    ):
        (self.container,) = template["spec"]["containers"]
        self.grace_s = float(template["spec"].get("terminationGracePeriodSeconds", 30))
        self.ip, self._ports = ip, dict(ports)
        self._folders = {
            mount["mountPath"]: folder / mount["name"]
            for mount in self.container["volumeMounts"]
            if mount["mountPath"] not in ("/tmp", "/dev/shm")
        }
        for path in self._folders.values():
            path.mkdir(parents=True, exist_ok=True)
        pod = {"POD_IP": ip, "POD_INDEX": str(index), "NODE_NAME": f"node-{ip}"}
        words = [self._local(_filled(word, pod)) for word in self.container["args"]]
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "EXPERTFLEET_"))}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "expertfleet.cluster", *words],
            env={**kept, **self._environment(), "PYTHONPATH": str(build)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def wait_ready(self, timeout_s: float = 180.0) -> "Pod":
        def ready() -> bool:
            assert self.process.poll() is None, "".join(self.lines)
            return self.passes("startupProbe") and self.passes("readinessProbe")

        until(ready, timeout_s, "".join(self.lines[-5:]))
        return self

    def passes(self, probe: str) -> bool:
        asked = self.container[probe]
        if "exec" in asked:
            command = [self._local(word) for word in asked["exec"]["command"]]
            return subprocess.run(command, capture_output=True, check=False).returncode == 0
        if "tcpSocket" in asked:
            with contextlib.suppress(OSError), socket.create_connection(self._named(asked["tcpSocket"]["port"]), 1):
                return True
            return False
        host, port = self._named(asked["httpGet"]["port"])
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"http://{host}:{port}{asked['httpGet']['path']}", trust_env=False).status_code == 200
        return False

    def terminate(self) -> float:
        """As Kubernetes does, its preStop aside; how long it took. Fails when it did not end by itself in time, with status 0."""
        below = descendants(self.process.pid)
        asked_at = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(self.grace_s)
        took_s = time.monotonic() - asked_at
        assert status == 0, "".join(self.lines)
        until(lambda: not any(map(alive, below)), 20)
        return took_s

    def kill(self) -> None:
        if self.process.poll() is None:
            below = descendants(self.process.pid)
            self.process.kill()
            self.process.wait(10)
            until(lambda: not any(map(alive, below)), 30)

    def _environment(self) -> dict[str, str]:
        """Variables that are written out, and the token; HOME stays this user's, as Ray's token does not lie there."""
        values = {"EXPERTFLEET_CLUSTER_TOKEN": TOKEN}
        for variable in self.container["env"]:
            if "value" in variable and variable["name"] != "HOME":
                values[variable["name"]] = self._local(variable["value"])
        return values

    def _local(self, word: str) -> str:
        """Addresses, ports and paths of the cluster as those of this machine."""
        word = word.replace("fleet-expertfleet-head:", f"{HEAD_IP}:").replace("0.0.0.0", self.ip)
        for theirs, ours in self._ports.items():
            word = word.replace(f":{theirs}", f":{ours}").replace(f"port={theirs}", f"port={ours}")
        for theirs, path in {**_IMAGE, **{mount: str(path) for mount, path in self._folders.items()}}.items():
            name, is_flag, value = word.partition("=")
            if (value if is_flag else word).startswith(theirs):
                word = f"{name}={value.replace(theirs, path, 1)}" if is_flag else word.replace(theirs, path, 1)
        return word

    def _named(self, port: str) -> tuple[str, int]:
        (number,) = (each["containerPort"] for each in self.container["ports"] if each["name"] == port)
        return self.ip, self._ports.get(number, number)

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            self.lines.extend(lines)


def _filled(word: str, pod: Mapping[str, str]) -> str:
    for name, value in pod.items():
        word = word.replace(f"$({name})", value)
    assert "$(" not in word, word
    return word
