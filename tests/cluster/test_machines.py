"""A head, nodes and a gateway as a fleet of several machines has them, each with a loopback address of its own.

How a node joins, leaves and is replaced while requests run, and that every role ends with status 0, is tests/helm/test_processes.py's.
"""

import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fleet_process import RoleProcess, plain_environment
from until import until

from expertfleet.checkpoint.make_tiny import make_tiny
from expertfleet.cluster.__main__ import main
from expertfleet.cluster.commands.gateway_process import claim_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
TOKEN = "a token of these tests alone"
HEAD = "127.0.0.2"
READY_S = 120.0


def start(*words: str) -> RoleProcess:
    environ = {**plain_environment(os.environ), "EXPERTFLEET_CLUSTER_TOKEN": TOKEN}
    return RoleProcess([sys.executable, "-m", "expertfleet.cluster", *words], environ)


class Machines:
    def __init__(self, folder: Path) -> None:
        self.folder, self.roles = folder, dict[str, RoleProcess]()
        self.model = folder / "tiny"
        make_tiny(self.model, seed=5)
        self.ray, self.controller = (claim_port(HEAD, 0, "") for _ in range(2))
        self.port, self.admin = (claim_port("127.0.0.1", 0, "") for _ in range(2))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start_head(self) -> RoleProcess:
        ports = (f"--ray-port={self.ray}", f"--controller-port={self.controller}")
        self.roles["head"] = start(
            "head", f"--model={self.model}", f"--storage={self.folder / 'store'}", f"--host={HEAD}", *ports,
            "--gather-s=2", "--dtype=float32",
        )  # fmt: skip
        return self.roles["head"]

    def start_node(self, role: str, ordinal: int, *flags: str) -> RoleProcess:
        seat = f"{role}-{ordinal}"
        self.roles[seat] = start(
            "node", role, f"--seat={seat}", f"--model={self.model}", f"--head={HEAD}:{self.ray}",
            f"--controller={HEAD}:{self.controller}", f"--host={self.host(role, ordinal)}", f"--node=machine-{seat}",
            f"--ready-file={self.ready_file(seat)}", "--leave-s=60", "--dtype=float32", *flags,
        )  # fmt: skip
        return self.roles[seat]

    def start_gateway(self) -> RoleProcess:
        self.roles["gateway"] = start(
            "gateway", f"--model={self.model}", f"--controller={HEAD}:{self.controller}", f"--port={self.port}",
            f"--admin-port={self.admin}",
        )  # fmt: skip
        return self.roles["gateway"]

    @staticmethod
    def host(role: str, ordinal: int) -> str:
        return f"127.0.{1 if role == 'expert' else 2}.{ordinal + 1}"

    def ready_file(self, seat: str) -> Path:
        return self.folder / f"{seat}.ready"

    def status(self) -> dict[str, Any]:
        reply = httpx.get(f"http://127.0.0.1:{self.admin}/status", timeout=10, trust_env=False).json()
        return {"settled": reply["settled"], **{worker["seat"]: worker for worker in reply["workers"]}}

    def wait_settled(self, *experts: str) -> dict[str, Any]:
        def settled() -> dict[str, Any] | None:
            status = self.status()
            present = {seat for seat in status if seat.startswith("expert-")}
            return status if status["settled"] and present == set(experts) else None

        return dict(until(settled, READY_S))

    def answer(self, num_tokens: int = 24) -> str:
        body = {"model": str(self.model), "prompt": "once upon a time", "max_tokens": num_tokens, "temperature": 0}
        reply = httpx.post(f"{self.url}/v1/completions", json=body, timeout=120, trust_env=False)
        assert reply.status_code == 200, reply.text
        return str(reply.json()["choices"][0]["text"])


class Asking(threading.Thread):
    """Asks again and again until it is told to stop; every answer is kept."""

    def __init__(self, machines: Machines) -> None:
        super().__init__(daemon=True)
        self.machines, self.answers, self.enough = machines, list[str](), threading.Event()
        self.start()

    def run(self) -> None:
        while not self.enough.is_set():
            self.answers.append(self.machines.answer())

    def stop(self) -> list[str]:
        self.enough.set()
        self.join(120)
        assert not self.is_alive()
        return self.answers


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    fleet = Machines(tmp_path_factory.mktemp("machines"))
    experts = ("expert-0", "expert-1", "expert-2")
    try:
        fleet.start_node("expert", 0)  # before its head: it waits
        fleet.start_head()
        for ordinal in (1, 2):
            fleet.start_node("expert", ordinal)
        fleet.start_node("attention", 0, "--max-model-len=1024", "--cache-gib=0.1")
        fleet.start_gateway()
        for seat in (*experts, "attention-0"):
            fleet.roles[seat].wait_for(f"{seat} ready")
        yield fleet
    finally:
        for role in reversed(fleet.roles.values()):
            role.kill()


def test_nodes_get_their_workers_and_the_fleet_answers(machines: Machines) -> None:
    status = machines.wait_settled("expert-0", "expert-1", "expert-2")
    assert status["expert-0"]["address"].startswith(f"{machines.host('expert', 0)}:")
    assert {status[seat]["node"] for seat in ("expert-0", "expert-1")} == {"machine-expert-0", "machine-expert-1"}
    assert [seat for seat in status if seat.startswith("gateway-")] != ["gateway-0"]
    assert machines.answer() == machines.answer()
    assert all(machines.ready_file(seat).exists() for seat in ("expert-0", "expert-1", "attention-0"))


def test_a_node_without_weights_gets_its_share_from_the_others(machines: Machines) -> None:
    bare = machines.folder / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors.index.json"):
        shutil.copy(machines.model / name, bare / name)
    before, expected, asking = set(machines.status()), machines.answer(), Asking(machines)
    experts = sorted(seat for seat in before if seat.startswith("expert-"))
    machines.start_node("expert", 5, f"--model={bare}").wait_for("expert-5 ready")
    machines.wait_settled(*experts, "expert-5")
    metrics = httpx.get(f"http://127.0.0.1:{machines.admin}/metrics", timeout=10, trust_env=False).text
    (loads,) = re.findall(r'expert_loads_peer_total\{role="expert",seat="expert-5"\} (\S+)', metrics)
    assert float(loads) > 0
    assert machines.roles["expert-5"].end() == 0
    assert not machines.ready_file("expert-5").exists()
    machines.wait_settled(*experts)
    assert set(asking.stop()) == {expected}


def test_the_head_comes_back_and_nothing_was_loaded_again(machines: Machines) -> None:
    workers = ("expert-0", "expert-1", "expert-2", "attention-0")
    before, expected, asking = machines.status(), machines.answer(), Asking(machines)
    machines.roles["head"].end(signal.SIGKILL)
    assert machines.answer() == expected
    machines.start_head().wait_for("controller")
    after = machines.wait_settled("expert-0", "expert-1", "expert-2")
    assert [after[seat]["pid"] for seat in workers] == [before[seat]["pid"] for seat in workers]
    assert set(asking.stop()) == {expected}


def test_a_machine_that_dies_is_replaced_by_the_next_that_offers_its_seat(machines: Machines) -> None:
    expected, asking = machines.answer(), Asking(machines)
    pid = machines.status()["expert-1"]["pid"]
    machines.roles["expert-1"].end(signal.SIGKILL)
    machines.start_node("expert", 1).wait_for("expert-1 ready")
    assert machines.wait_settled("expert-0", "expert-1", "expert-2")["expert-1"]["pid"] != pid
    assert set(asking.stop()) == {expected}


def start_second(machines: Machines, ordinal: int, host: str, *flags: str) -> RoleProcess:
    """Another machine's node at a seat that one has already."""
    first = machines.roles[f"expert-{ordinal}"]
    second = machines.start_node("expert", ordinal, f"--host={host}", f"--ready-file={machines.folder / host}", *flags)
    machines.roles[f"expert-{ordinal}"], machines.roles[host] = first, second
    return second


def test_a_second_node_at_a_served_seat_leaves_it_alone(machines: Machines) -> None:
    before = machines.wait_settled("expert-0", "expert-1", "expert-2")
    ending, waiting = (
        start_second(machines, 1, f"127.0.9.{number}", *flags) for number, flags in ((1, ()), (2, ("--if-taken=wait",)))
    )
    assert ending.process.wait(60) == 1
    held = f"seat: expert-1 is held by pid {before['expert-1']['pid']} on machine-expert-1 at {before['expert-1']['address']}"
    assert any(held in line for line in ending.lines)
    waiting.wait_for("waiting until expert-1 is free")
    assert waiting.end(signal.SIGINT) == 0
    after = machines.wait_settled("expert-0", "expert-1", "expert-2")
    assert {seat: after[seat]["pid"] for seat in after if seat.startswith("expert")} == {
        seat: before[seat]["pid"] for seat in before if seat.startswith("expert")
    }
    assert machines.ready_file("expert-1").exists()


def test_of_two_nodes_that_come_for_one_seat_one_serves_and_the_other_ends(machines: Machines) -> None:
    hosts = [f"127.0.8.{number}" for number in (1, 2)]
    for host in hosts:
        machines.roles["expert-6"] = machines.roles["head"]
        start_second(machines, 6, host)
    del machines.roles["expert-6"]
    nodes = [machines.roles[host] for host in hosts]
    until(lambda: [node for node in nodes if any("expert-6 ready" in line for line in node.lines)], READY_S)
    until(lambda: [node for node in nodes if not node.is_running], READY_S)
    (loser,) = [node for node in nodes if not node.is_running]
    (winner,) = [node for node in nodes if node.is_running]
    assert loser.process.returncode == 1
    assert any("seat: expert-6 is held by pid" in line for line in loser.lines)
    assert machines.wait_settled("expert-0", "expert-1", "expert-2", "expert-6")
    assert winner.end() == 0
    machines.wait_settled("expert-0", "expert-1", "expert-2")


def test_a_node_that_waits_takes_the_seat_when_its_holder_is_gone(machines: Machines) -> None:
    expected = machines.answer()
    waiting = start_second(machines, 2, "127.0.7.1", "--if-taken=wait")
    waiting.wait_for("waiting until expert-2 is free")
    machines.roles["expert-2"].end(signal.SIGKILL)
    waiting.wait_for("expert-2 ready")
    status = machines.wait_settled("expert-0", "expert-1", "expert-2")
    assert status["expert-2"]["address"].startswith("127.0.7.1:")
    assert machines.answer() == expected


def test_nodes_decide_how_many_there_are(machines: Machines, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scale", "--expert-shards", "2", "--url", machines.url]) == 1
    assert "this fleet's seats are those that its nodes offer" in capsys.readouterr().err


def test_a_worker_that_cannot_work_ends_its_node_with_the_reason(machines: Machines, tmp_path: Path) -> None:
    other = tmp_path / "other"
    make_tiny(other, seed=6)
    node = machines.start_node("expert", 7, f"--model={other}")
    assert node.process.wait(120) == 1
    assert any("expert-7: FOREIGN_CHECKPOINT" in line or "has opened checkpoint" in line for line in node.lines)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("head", "--host=127.0.0.2"), "EXPERTFLEET_CLUSTER_TOKEN: none is given"),
        (("node", "expert", "--seat=attention-0"), "seat: 'attention-0' is not expert-N"),
        (("node", "expert", "--host=127.0.0.1"), "host: 127.0.0.1 is no address that other machines have"),
        (("node", "expert", "--head=here"), "head: 'here' is not HOST:PORT"),
    ],
)
def test_a_mistake_is_one_line(
    words: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setenv("EXPERTFLEET_CLUSTER_TOKEN", "" if words[0] == "head" else TOKEN)
    shared = {"--model": str(tmp_path), "--storage": str(tmp_path)} if words[0] == "head" else {
        "--model": str(tmp_path), "--head": "127.0.0.2:1", "--controller": "127.0.0.2:2", "--host": "127.0.0.3",
    }  # fmt: skip
    given = [f"{name}={value}" for name, value in shared.items() if not any(word.startswith(name) for word in words)]
    assert main([*words, *given]) == 1
    told = capsys.readouterr().err
    assert told.startswith("expertfleet: error: ")
    assert message in told
    assert told.count("\n") == 1
