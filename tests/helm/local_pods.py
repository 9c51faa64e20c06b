"""Rendered pods as processes of this machine: each with a loopback address of its own, its volumes in a folder of its own.

Knows nothing of what runs in them. What a node of Kubernetes would do is done here: variables and addresses are filled in, Secrets
mounted, probes asked, SIGTERM sent and the grace period kept. What runs is the image's entry point, of an ``opt`` that stands for its /opt.
"""

import contextlib
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import fleet_chart as chart
import httpx
from fleet_process import RoleProcess, plain_environment
from image import entry_point, whole

HEAD_IP = "127.0.0.2"
# Volumes that are this machine's own, at the very place.
_SHARED = ("/tmp", "/dev/shm")
_WRITABLE = re.compile(r"^flags:\s+\d*[12]$", re.MULTILINE)


@dataclass(frozen=True)
class Place:
    """What the pods of one release have in common; ``secrets`` has a folder for each Secret."""

    secrets: Path
    ports: Mapping[int, int]
    opt: Path


class Pod(RoleProcess):
    """One process, started from its container as it stands in the chart."""

    def __init__(self, template: chart.Object, ip: str, index: int, folder: Path, place: Place) -> None:
        (self.container,) = template["spec"]["containers"]
        self.grace_s = float(template["spec"].get("terminationGracePeriodSeconds", 30))
        self.ip, self._place = ip, place
        secrets = {volume["name"]: volume.get("secret", {}).get("secretName") for volume in template["spec"]["volumes"]}
        self._folders = {
            mount["mountPath"]: place.secrets / secrets[mount["name"]]
            if secrets.get(mount["name"])
            else folder / mount["name"]
            for mount in self.container["volumeMounts"]
            if mount["mountPath"] not in _SHARED
        }
        for path in self._folders.values():
            path.mkdir(parents=True, exist_ok=True)
        pod = {"POD_IP": ip, "POD_INDEX": str(index), "NODE_NAME": f"node-{ip}"}
        words = [self._local(_filled(word, pod)) for word in self.container["args"]]
        environ = {**plain_environment(os.environ), **self._environment()}
        super().__init__([*entry_point(place.opt), *words], environ)

    def wait_ready(self, timeout_s: float = 300.0) -> "Pod":
        self.wait_until(lambda: self.passes("startupProbe") and self.passes("readinessProbe"), timeout_s)
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
        asked_at = time.monotonic()
        assert self.end(timeout_s=self.grace_s) == 0, "".join(self.lines)
        return time.monotonic() - asked_at

    def written(self) -> Iterator[Path]:
        """The files that it, or what it started, has open for writing and that lie outside its volumes."""
        mounts = (*_SHARED, *map(str, self._folders.values()), "/proc", "/sys", "/dev/null", "/dev/pts")
        for pid in self.pids():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                for number in os.listdir(f"/proc/{pid}/fd"):
                    path = os.readlink(f"/proc/{pid}/fd/{number}")
                    flags = Path(f"/proc/{pid}/fdinfo/{number}").read_text()
                    inside = path.startswith(str(self._place.opt)) or not path.startswith(mounts)
                    if path.startswith("/") and not path.startswith("/memfd:") and _WRITABLE.search(flags) and inside:
                        yield Path(path)

    def _environment(self) -> dict[str, str]:
        """The image's variables, those that are written out, and those of Secrets."""
        values = dict(re.findall(r"(\w+)=(\S+)", " ".join(rest for word, rest in whole("cpu") if word == "ENV")))
        values["PATH"] = values["PATH"].replace("/opt/", f"{self._place.opt}/").replace("$PATH", os.environ["PATH"])
        for variable in self.container["env"]:
            secret = variable.get("valueFrom", {}).get("secretKeyRef")
            if secret:
                values[variable["name"]] = (self._place.secrets / secret["name"] / secret["key"]).read_text()
            elif "value" in variable:
                values[variable["name"]] = self._local(variable["value"])
        return values

    def _local(self, word: str) -> str:
        """Addresses, ports and paths of the cluster as those of this machine."""
        word = word.replace("fleet-expertfleet-head:", f"{HEAD_IP}:").replace("0.0.0.0", self.ip)
        for theirs, ours in self._place.ports.items():
            word = word.replace(f":{theirs}", f":{ours}").replace(f"port={theirs}", f"port={ours}")
        name, equals, value = word.rpartition("=")
        for theirs, path in {"/opt": self._place.opt, **self._folders}.items():
            if value == theirs or value.startswith(f"{theirs}/"):
                return f"{name}{equals}{path}{value.removeprefix(theirs)}"
        return word

    def _named(self, port: str) -> tuple[str, int]:
        (number,) = (each["containerPort"] for each in self.container["ports"] if each["name"] == port)
        return self.ip, self._place.ports.get(number, number)


def _filled(word: str, pod: Mapping[str, str]) -> str:
    for name, value in pod.items():
        word = word.replace(f"$({name})", value)
    assert "$(" not in word, word
    return word
