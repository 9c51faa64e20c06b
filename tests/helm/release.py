"""The pods of the rendered demo preset on this machine, with TLS and keys besides, and clients that ask them.

Knows nothing of Kubernetes: who starts and ends is for a test to say.
"""

import json
import re
import shutil
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import fleet_chart as chart
import httpx
import trustme
from local_pods import HEAD_IP, Place, Pod
from secret_volume import mount_secret
from until import until

from expertfleet.cluster.commands.gateway_process import claim_port

GATEWAY = 8000
QUESTION = "which one is bigger, 9.11 or 9.9? think carefully."
VALUES: chart.Values = {
    "tls": {"existingSecret": "certificate"},
    "apiKeys": {"existingSecret": "keys", "open": False},
    # Its only attention worker is replaced under requests.
    "gateway": {"settings": {"workerWaitS": 120}},
}


class Release:
    """Ports that others may use as well are drawn."""

    def __init__(self, folder: Path, opt: Path) -> None:
        self.folder, self.opt = folder, opt
        self.secrets = folder / "secrets"
        mount_secret(self.secrets / "expertfleet-token", {"token": b"a token that these tests alone know"})
        self.renew_certificate()
        self.key = "old"  # that clients show
        self.set_keys(self.key)
        self.objects = chart.render("demo", VALUES)
        self.ports = {port: claim_port(HEAD_IP, 0, "") for port in (6379, 7411, GATEWAY, 8001)}
        self.pods: dict[str, Pod] = {}
        self.gateways: list[Pod] = []

    def renew_certificate(self) -> None:
        """Of another authority, so that whoever shows the one before, or asks for it, is refused."""
        authority = trustme.CA()
        issued = authority.issue_cert("expertfleet")
        files = {
            "ca.crt": authority.cert_pem.bytes(),
            "tls.crt": b"".join(pem.bytes() for pem in issued.cert_chain_pems),
            "tls.key": issued.private_key_pem.bytes(),
        }
        mount_secret(self.secrets / "certificate", files)

    def set_keys(self, *keys: str) -> None:
        mount_secret(self.secrets / "keys", {"keys": ",".join(keys).encode()})

    def next_build(self) -> Path:
        """The image with the wire version after its own, and no other change."""
        build = self.folder / "next"
        shutil.copytree(self.opt, build, symlinks=True)
        (site,) = build.glob("venv/lib/python3.*/site-packages")
        (found,) = (
            path
            for path in (site / "expertfleet/proto").glob("*.py")
            if re.search(r"^WIRE_VERSION = ", path.read_text(), re.MULTILINE)
        )
        text = found.read_text()
        (version,) = re.findall(r"^WIRE_VERSION = (\d+)", text, re.MULTILINE)
        later = re.sub(r"^WIRE_VERSION = \d+", f"WIRE_VERSION = {int(version) + 1}", text, flags=re.MULTILINE)
        found.write_text(
            re.sub(r"^OLDEST_WIRE_VERSION = .*", f"OLDEST_WIRE_VERSION = {version}", later, flags=re.MULTILINE)
        )
        return build

    def start(self, role: str, index: int = 0, values: chart.Values | None = None) -> Pod:
        objects = self.objects if values is None else chart.render("demo", chart.over(VALUES, values))
        kind = "Deployment" if role == "gateway" else "StatefulSet"
        template = chart.named(objects, kind, f"-{role}")["spec"]["template"]
        ip = {"head": HEAD_IP, "attention": f"127.0.2.{index + 1}", "expert": f"127.0.1.{index + 1}"}.get(
            role, f"127.0.3.{index + 1}"
        )
        volumes = self.folder / ("head" if role == "head" else f"{role}-{index}-{len(self.pods)}")
        pod = Pod(template, ip, index, volumes, Place(self.secrets, self.ports, self.opt))
        self.pods[f"{role}-{index}"] = pod
        if role == "gateway":
            self.gateways.append(pod)
        return pod

    def start_all(self) -> None:
        for role in ("head", "expert", "attention"):
            for index in range(self.replicas(role)):
                self.start(role, index)
        self.start("gateway")
        for pod in list(self.pods.values()):
            pod.wait_ready()

    def kill_all(self) -> None:
        for pod in (*self.gateways, *self.pods.values()):
            pod.kill()

    def replicas(self, role: str) -> int:
        return int(chart.named(self.objects, "StatefulSet", f"-{role}")["spec"]["replicas"])

    def url(self) -> str:
        """Of the newest gateway that is ready, as a Service would choose one."""
        ready = [pod for pod in self.gateways if pod.is_running and pod.passes("readinessProbe")]
        return f"http://{ready[-1].ip}:{self.ports[GATEWAY]}"

    def seats(self) -> dict[str, str]:
        gateway = next(pod for pod in reversed(self.gateways) if pod.is_running)
        status = httpx.get(f"http://{gateway.ip}:{self.ports[8001]}/status", timeout=10, trust_env=False).json()
        seats = {
            worker["seat"]: worker["state"] for worker in status["workers"] if not worker["seat"].startswith("gateway")
        }
        return {**seats, "settled": str(status["settled"])}

    def wait_settled(self, *experts: str) -> None:
        def settled() -> bool:
            seats = self.seats()
            return seats["settled"] == "True" and {seat for seat in seats if seat.startswith("expert")} == set(experts)

        until(settled, 180, str(self.seats()))

    def post(self, url: str = "", key: str = "", **fields: Any) -> httpx.Response:
        body = {"model": "nano-k2", "messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
        return httpx.post(
            f"{url or self.url()}/v1/chat/completions",
            json={**body, "max_tokens": 400, **fields},
            headers={"Authorization": f"Bearer {key or self.key}"},
            timeout=300,
            trust_env=False,
        )

    def ask(self) -> str:
        """The answer of a streamed chat, thinking included. Raises AssertionError for anything but a whole one."""
        reply = self.post(stream=True)
        assert reply.status_code == 200, reply.text
        return told(reply.text.splitlines())


def told(lines: Iterable[str]) -> str:
    text, reasons = "", []
    for line in lines:
        if line.startswith("data: {"):
            event = json.loads(line.removeprefix("data: "))
            assert "error" not in event, event
            for choice in event["choices"]:
                delta = choice["delta"]
                text += (delta.get("reasoning_content") or "") + (delta.get("content") or "")
                reasons += [choice["finish_reason"]] if choice["finish_reason"] else []
    assert reasons == ["stop"], reasons
    return text


class Asking:
    """Clients that ask again and again; an error of any kind is kept and fails the test."""

    def __init__(self, release: Release, num_clients: int = 2) -> None:
        self.answers: list[str] = []
        self.errors: list[BaseException] = []
        self._release, self._enough = release, threading.Event()
        self._clients = [threading.Thread(target=self._run, daemon=True) for _ in range(num_clients)]
        for client in self._clients:
            client.start()

    def _run(self) -> None:
        while not self._enough.is_set():
            try:
                self.answers.append(self._release.ask())
            except (AssertionError, httpx.HTTPError) as error:
                self.errors.append(error)
                return

    def stop(self) -> list[str]:
        self._enough.set()
        for client in self._clients:
            client.join(300)
            assert not client.is_alive()
        assert not self.errors, self.errors
        return self.answers
