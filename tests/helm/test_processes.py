"""The commands of the rendered demo preset, run as they stand: they serve, grow, drain, and are replaced under requests."""

import json
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import fleet_chart as chart
import httpx
import pytest
from local_pods import HEAD_IP, Pod, until

from expertfleet.cluster.gateway_process import claim_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
GATEWAY = 8000
QUESTION = "which one is bigger, 9.11 or 9.9? think carefully."


class Release:
    """The preset's pods on this machine. Ports that others may use as well are drawn."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.objects = chart.render("demo", {"gateway": {"settings": {"workerWaitS": 120}}})
        self.ports = {port: claim_port(HEAD_IP, 0, "") for port in (6379, 7411, GATEWAY, 8001)}
        self.pods: dict[str, Pod] = {}
        self.gateways: list[Pod] = []
        self.build = self.this_build()

    def this_build(self) -> Path:
        return chart.ROOT / ".link"

    def next_build(self) -> Path:
        """This package with the wire version after its own, and no other change."""
        build = self.folder / "next"
        left_out = shutil.ignore_patterns(
            ".*", "tests", "benchmarks", "docs", "helm", "nano-k2", "__pycache__", "build"
        )
        shutil.copytree(chart.ROOT, build / "expertfleet", ignore=left_out)
        (found,) = (
            path
            for path in (build / "expertfleet" / "proto").glob("*.py")
            if re.search(r"^WIRE_VERSION = ", path.read_text(), re.MULTILINE)
        )
        text = found.read_text()
        (version,) = re.findall(r"^WIRE_VERSION = (\d+)", text, re.MULTILINE)
        later = re.sub(r"^WIRE_VERSION = \d+", f"WIRE_VERSION = {int(version) + 1}", text, flags=re.MULTILINE)
        found.write_text(
            re.sub(r"^OLDEST_WIRE_VERSION = .*", f"OLDEST_WIRE_VERSION = {version}", later, flags=re.MULTILINE)
        )
        return build

    def start(self, role: str, index: int = 0) -> Pod:
        kind = "Deployment" if role == "gateway" else "StatefulSet"
        template = chart.named(self.objects, kind, f"-{role}")["spec"]["template"]
        ip = {"head": HEAD_IP, "attention": f"127.0.2.{index + 1}", "expert": f"127.0.1.{index + 1}"}.get(
            role, f"127.0.3.{index + 1}"
        )
        volumes = self.folder / ("head" if role == "head" else f"{role}-{index}-{len(self.pods)}")
        pod = self.pods[f"{role}-{index}"] = Pod(template, ip, index, volumes, self.ports, self.build)
        if role == "gateway":
            self.gateways.append(pod)
        return pod

    def replicas(self, role: str) -> int:
        return int(chart.named(self.objects, "StatefulSet", f"-{role}")["spec"]["replicas"])

    def url(self) -> str:
        """Of the newest gateway that is ready, as a Service would choose one."""
        ready = [pod for pod in self.gateways if pod.process.poll() is None and pod.passes("readinessProbe")]
        return f"http://{ready[-1].ip}:{self.ports[GATEWAY]}"

    def seats(self) -> dict[str, str]:
        gateway = next(pod for pod in reversed(self.gateways) if pod.process.poll() is None)
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

    def ask(self) -> str:
        """The answer of a streamed chat, thinking included. Raises AssertionError for anything but a whole one."""
        body = {
            "model": "nano-k2", "messages": [{"role": "user", "content": QUESTION}], "temperature": 0,
            "max_tokens": 400, "stream": True,
        }  # fmt: skip
        told, reasons = "", []
        with httpx.stream(
            "POST", f"{self.url()}/v1/chat/completions", json=body, timeout=300, trust_env=False
        ) as reply:
            assert reply.status_code == 200, reply.read()
            for line in reply.iter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line.removeprefix("data: "))
                    assert "error" not in event, event
                    for choice in event["choices"]:
                        delta = choice["delta"]
                        told += (delta.get("reasoning_content") or "") + (delta.get("content") or "")
                        reasons += [choice["finish_reason"]] if choice["finish_reason"] else []
        assert reasons == ["stop"], reasons
        return told


class Asking:
    """Two clients that ask again and again; an error of any kind is kept and fails the test."""

    def __init__(self, release: Release) -> None:
        self.answers: list[str] = []
        self.errors: list[BaseException] = []
        self._release, self._enough = release, threading.Event()
        self._clients = [threading.Thread(target=self._run, daemon=True) for _ in range(2)]
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


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    installed = Release(tmp_path_factory.mktemp("release"))
    try:
        roles = [
            ("head", 0),
            *((role, index) for role in ("expert", "attention") for index in range(installed.replicas(role))),
        ]
        for role, index in roles:
            installed.start(role, index)
        installed.start("gateway")
        for pod in list(installed.pods.values()):
            pod.wait_ready()
        yield installed
    finally:
        for pod in (*installed.gateways, *installed.pods.values()):
            pod.kill()


def test_the_preset_serves_a_chat(release: Release) -> None:
    release.wait_settled("expert-0", "expert-1")
    assert "9.9 is" in release.ask()


def test_one_more_shard_joins_while_requests_run_and_leaves_again(release: Release) -> None:
    expected, asking = release.ask(), Asking(release)
    joined = release.start("expert", 2).wait_ready()
    release.wait_settled("expert-0", "expert-1", "expert-2")
    assert joined.terminate() < joined.grace_s
    release.wait_settled("expert-0", "expert-1")
    assert set(asking.stop()) == {expected}


def test_every_process_is_replaced_by_the_next_build_while_requests_run(release: Release) -> None:
    expected, asking = release.ask(), Asking(release)
    release.build = release.next_build()
    for role in ("expert", "attention", "head"):
        for index in range(release.replicas(role)):
            release.pods[f"{role}-{index}"].terminate()
            release.start(role, index).wait_ready()
            release.wait_settled("expert-0", "expert-1")
    (old,) = release.gateways
    release.start("gateway", 1).wait_ready()
    old.terminate()
    answers = asking.stop()
    assert set(answers) == {expected}
    assert len(answers) > 4
    assert release.ask() == expected
