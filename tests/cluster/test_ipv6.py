"""A fleet whose machines have IPv6 addresses alone: they stand in a network namespace of their own, on its loopback."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet_process import RoleProcess, plain_environment
from until import until

from expertfleet.checkpoint.make_tiny import make_tiny

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="network namespaces need root and ip"),
]
SPACE = f"expertfleet-ipv6-{os.getpid()}"
HEAD, EXPERTS, ATTENTION = "fd77::1", ("fd77::1:1", "fd77::1:2"), "fd77::2:1"
# Nodes know the head by name, as a Service's, gateways by its address.
NAME = "the-head.example"
NODE = (f"--head={NAME}:6379", f"--controller={NAME}:7411", "--leave-s=60")
ASKING = """
import sys, httpx
method, url, body = sys.argv[1:]
reply = httpx.request(method, url, content=body, headers={"Content-Type": "application/json"}, timeout=60, trust_env=False)
print(reply.text)
"""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def inside(*words: str) -> list[str]:
    return ["ip", "netns", "exec", SPACE, sys.executable, *words]


def ask(method: str, url: str, body: str = "") -> str:
    """Empty while nobody answers there."""
    done = subprocess.run(
        inside("-c", ASKING, method, url, body), capture_output=True, text=True, timeout=90, check=False
    )
    return done.stdout


class Fleet:
    def __init__(self, folder: Path) -> None:
        self.model, self.roles = folder / "tiny", list[RoleProcess]()
        make_tiny(self.model, seed=5)
        self.start("head", f"--storage={folder / 'store'}", f"--host={HEAD}", "--gather-s=2", "--dtype=float32")
        for role, hosts in (("expert", EXPERTS), ("attention", (ATTENTION,))):
            for number, host in enumerate(hosts):
                own = (f"--seat={role}-{number}", f"--host={host}", f"--node=machine-{host}", "--dtype=float32")
                self.start("node", role, *own, *NODE)
        self.start(
            "gateway", f"--controller=[{HEAD}]:7411", "--host=::", "--open", "--admin-host=::", "--admin-port=8001"
        )

    def start(self, *words: str) -> None:
        environ = {**plain_environment(os.environ), "EXPERTFLEET_CLUSTER_TOKEN": "a token of these tests alone"}
        command = inside("-m", "expertfleet.cluster", *words, f"--model={self.model}")
        self.roles.append(RoleProcess(command, environ))

    def addresses(self) -> dict[str, str]:
        """By seat, once everything is where it belongs."""

        def settled() -> dict[str, str] | None:
            said = ask("GET", "http://[::1]:8001/status")
            status = json.loads(said) if said else {"settled": False}
            return {each["seat"]: each["address"] for each in status["workers"]} if status["settled"] else None

        return dict(until(settled, 200))


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    ip("netns", "add", SPACE)
    hosts = Path("/etc/netns", SPACE, "hosts")  # what `ip netns exec` has them see as /etc/hosts
    hosts.parent.mkdir(parents=True)
    try:
        hosts.write_text(f"::1 localhost\n{HEAD} {NAME}\n")
        ip("-n", SPACE, "link", "set", "lo", "up")
        ip("-n", SPACE, "addr", "del", "127.0.0.1/8", "dev", "lo")
        for host in (HEAD, *EXPERTS, ATTENTION):
            ip("-n", SPACE, "-6", "addr", "add", f"{host}/128", "dev", "lo")
        made = Fleet(tmp_path)
        try:
            yield made
        finally:
            for role in reversed(made.roles):
                role.end()
    finally:
        ip("netns", "del", SPACE)
        shutil.rmtree(hosts.parent)


def test_it_serves_and_every_address_is_reached(fleet: Fleet) -> None:
    addresses = fleet.addresses()
    gateway = addresses.pop(next(seat for seat in addresses if seat.startswith("gateway-")))
    assert gateway == f"[{HEAD}]:8000", "the address from which it reaches the controller"
    assert addresses.pop("controller") == f"[{HEAD}]:7411"
    hosts = {seat: address.rpartition(":")[0] for seat, address in addresses.items()}
    assert hosts == {"expert-0": f"[{EXPERTS[0]}]", "expert-1": f"[{EXPERTS[1]}]", "attention-0": f"[{ATTENTION}]"}
    body = {"model": str(fleet.model), "prompt": "once upon a time", "max_tokens": 8, "temperature": 0}
    for host in ("[::1]", f"[{HEAD}]"):
        reply = json.loads(ask("POST", f"http://{host}:8000/v1/completions", json.dumps(body)))
        assert reply["usage"]["completion_tokens"] == 8
