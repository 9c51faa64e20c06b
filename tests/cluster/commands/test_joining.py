"""What a node finds out before it starts anything, against a controller, and against what is none, on loopback addresses."""

import http.server
import os
import platform
import shutil
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from fleet_process import RoleProcess, plain_environment

from expertfleet.checkpoint.checkpoint_headers import Outline
from expertfleet.checkpoint.files import CheckpointFiles
from expertfleet.checkpoint.make_tiny import make_tiny
from expertfleet.cluster.__main__ import main
from expertfleet.cluster.commands import joining
from expertfleet.cluster.commands.gateway_process import claim_port
from expertfleet.cluster.commands.joining import Joining, SeatTakenError
from expertfleet.cluster.commands.resource_plan import fleet_shape
from expertfleet.cluster.commands.stop import Stop, StopAsked
from expertfleet.cluster.controller.controller import Controller
from expertfleet.cluster.controller.controller_thread import ControllerThread
from expertfleet.cluster.controller.desired_state import DesiredState
from expertfleet.cluster.errors import ClusterError
from expertfleet.expert_workers.config import ExpertConfig
from expertfleet.expert_workers.memory import num_experts_in
from expertfleet.membership import security
from expertfleet.membership.entrance import check_own
from expertfleet.membership.lease_client import LeaseClient
from expertfleet.membership.security import WireSecurity
from expertfleet.proto.generated import membership_pb2 as pb
from expertfleet.transport.io_thread import IoThread

TOKEN = "a token of these tests alone"
HEAD, NODE = "127.0.0.2", "127.0.0.3"
WANTED = DesiredState.first(attention_workers=1, expert_shards=2, replicas=1)


class Quick(Stop):
    """Pauses are over at once; the end comes after so many of them."""

    def __init__(self, pauses: int = 200) -> None:
        super().__init__()
        self.pauses = pauses

    def wait_until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        self.pauses -= 1
        if self.pauses < 0:
            raise StopAsked
        return super().wait_until(condition, 0.05)


class Desk:
    """A controller, and what a node says that would join it."""

    def __init__(self, model: Path, channels: WireSecurity | None = None, **settings: Any) -> None:
        self.model, self.said = model, list[str]()
        security.secure(channels or WireSecurity(token=TOKEN))
        with CheckpointFiles.open(model) as checkpoint:
            self.shape = fleet_shape(checkpoint, "bfloat16")
        self.thread = ControllerThread(Controller(self.shape, WANTED, HEAD, versions=joining.versions(), **settings))
        self.address = self.thread.controller.address
        self.io = IoThread("test-desk")
        self.keepers: list[LeaseClient] = []

    def joining(
        self, *, controller: str = "", head: str = "", wait_s: float = 0.0, if_taken: Any = "end", **settings: Any
    ) -> Joining:
        given = {
            "model": self.model,
            "seat": "expert-1",
            "host": NODE,
            "cluster_token": TOKEN,
            "memory_gib": 1.0,
            **settings,
        }
        config = ExpertConfig(controller=controller or self.address, **given)
        security.secure(config.wire)
        head = head or f"{HEAD}:{claim_port(HEAD, 0, '')}"
        return Joining(head, config.controller or "", config, wait_s, if_taken, Quick(), self.said.append)

    def take(self, seat: str, address: str = f"{NODE}:9", reports: bool = True, state: str = "ready") -> LeaseClient:
        """By a worker that reports for as long as this lives."""
        keeper = LeaseClient(self.address, seat)
        self.keepers.append(keeper)
        self.io.submit(keeper.register(address, 77, "machine-a", self.shape.fingerprint, self.shape.dtype))
        report = pb.WorkerReport(seat=seat, state=state, pid=77)
        self.io.submit(keeper.report(report))
        if reports:
            self.io.spawn(keeper.keep(lambda: report, interval_s=0.05))
        return keeper

    def close(self) -> None:
        for keeper in self.keepers:
            self.io.submit(keeper.close())
        self.io.stop()
        self.thread.stop()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(joining, "_RAY_AWAY_S", 0.0)
    monkeypatch.setattr(joining, "_NO_NAMES_S", 0.0)
    yield
    security.secure(WireSecurity())


@pytest.fixture
def desk(tiny: Path) -> Iterator[Desk]:
    desk = Desk(tiny)
    yield desk
    desk.close()


def refusal(check: Joining) -> str:
    with pytest.raises((ClusterError, ValueError)) as caught:
        check.check()
    told = str(caught.value)
    assert "\n" not in told
    return told


def test_a_node_says_what_it_joins_and_what_the_controller_answers(desk: Desk) -> None:
    told = refusal(desk.joining(head=f"{HEAD}:1"))
    assert told.startswith(
        f"head: {HEAD}:1 has not answered for 0 s (Connection refused); start the head, or correct --head"
    )
    assert desk.said[0] == f"expert-1 at {NODE} joins the head {HEAD}:1 and its controller {desk.address}"
    assert desk.said[1].startswith(
        f"controller {desk.address} answers: checkpoint {desk.shape.fingerprint[:16]}…, bfloat16; expert-1 is free"
    )


def test_a_wrong_token_is_told_by_the_controller(desk: Desk) -> None:
    told = refusal(desk.joining(cluster_token="of another fleet altogether"))
    assert told.startswith(f"cluster_token: the controller at {desk.address} refuses it")
    assert "of another fleet altogether" not in told


@pytest.mark.parametrize("host", ["10.255.255.254", "192.0.2.7", "2001:db8::7"])
def test_an_address_of_another_machine_is_refused_before_anybody_is_asked(desk: Desk, host: str) -> None:
    told = refusal(desk.joining(host=host))
    assert told.startswith(f"host: {host} is no address of this machine, which has ")
    assert "127.0.0.1" in told
    assert len(desk.said) == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.8.7", "localhost"])
def test_addresses_of_loopback_are_this_machines(host: str) -> None:
    check_own(host)


@pytest.mark.parametrize("flag", ["controller", "host", "head"])
def test_a_name_that_nobody_knows_is_named(desk: Desk, flag: str) -> None:
    name = "no-such-machine.invalid"
    told = refusal(desk.joining(**{flag: name if flag == "host" else f"{name}:7411"}))
    assert told.startswith(f"{flag}: ")
    assert f"the name '{name}' cannot be looked up" in told
    assert f"--{flag}" in told


def test_a_controller_that_is_not_there_is_waited_for_and_said(desk: Desk) -> None:
    nobody = f"{HEAD}:{claim_port(HEAD, 0, '')}"
    told = refusal(desk.joining(controller=nobody, wait_s=0.3))
    assert told.startswith(f"controller: {nobody} has not answered for 0.3 s (Connection refused); start the head")
    assert desk.said[1] == f"waiting for the head, whose controller is to be at {nobody}: Connection refused"
    assert len(desk.said) == 2


class Closing(socketserver.BaseRequestHandler):
    """Takes a connection and says nothing."""

    def handle(self) -> None:
        return


@pytest.fixture
def serve_at() -> Iterator[Callable[[type], str]]:
    servers: list[socketserver.TCPServer] = []

    def start(handler: type) -> str:
        server = http.server.ThreadingHTTPServer((HEAD, 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"{HEAD}:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


class Quiet(http.server.BaseHTTPRequestHandler):
    def log_message(self, *words: object) -> None:
        return


@pytest.mark.parametrize("flag", ["controller", "head"])
def test_an_http_server_is_no_head(desk: Desk, serve_at: Callable[[type], str], flag: str) -> None:
    address = serve_at(Quiet)
    assert f"{flag}: an HTTP server answers at {address}, no head of a fleet; correct --{flag}" == refusal(
        desk.joining(**{flag: address})
    )


def test_what_says_nothing_is_waited_for_as_what_is_not_there(desk: Desk, serve_at: Callable[[type], str]) -> None:
    address = serve_at(Closing)
    assert f"head: {address} has not answered for 0 s" in refusal(desk.joining(head=address))


def test_a_controller_is_no_ray(desk: Desk) -> None:
    told = refusal(desk.joining(head=desk.address))
    assert (
        told
        == f"head: what answers at {desk.address} is not Ray's head of this fleet; give HOST:PORT of the head's --ray-port"
    )


@pytest.mark.parametrize(("ours", "theirs"), [("one", "none"), ("none", "one"), ("another", "one"), ("one", "one")])
def test_tls_on_one_side_only_or_of_two_authorities_is_told(
    tiny: Path, tmp_path: Path, certify: Callable[..., Path], ours: str, theirs: str
) -> None:
    authorities = {"one": trustme.CA(), "another": trustme.CA()}
    folders = {name: certify(tmp_path / name, authority) for name, authority in authorities.items()}
    desk = Desk(tiny, WireSecurity(folders.get(theirs), TOKEN))
    try:
        told = refusal(desk.joining(tls_dir=folders.get(ours)))
    finally:
        security.secure(WireSecurity(folders.get(theirs), TOKEN))
        desk.close()
    if ours == theirs:
        assert told.startswith("head: ")
    elif ours == "none":
        assert told.startswith(
            f"tls_dir: none is given, and {desk.address} speaks TLS; give the --tls-dir that the head has"
        )
    else:
        assert told.startswith(f"tls_dir: {folders[ours]}: no TLS with the controller at {desk.address}: ")
        assert ("its certificate is not accepted" in told) == (theirs == "one")


def test_another_checkpoint_another_dtype_and_another_ray_are_told(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tiny(tmp_path / "other", seed=9)
    told = refusal(desk.joining(model=tmp_path / "other"))
    assert told.startswith("model: expert-1 has opened checkpoint ")
    assert f"this fleet serves {desk.shape.fingerprint[:16]}…; give --model" in told
    assert refusal(desk.joining(dtype="float32")) == (
        "dtype: expert-1 would compute in float32, this fleet in bfloat16; give --dtype bfloat16"
    )
    monkeypatch.setattr(joining, "versions", lambda: {"ray": "1.0.0", "python": platform.python_version()})
    assert refusal(desk.joining()).startswith("ray: version 1.0.0 is installed here, ")


def test_a_directory_without_a_model_and_memory_for_no_expert_are_told(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert str(tmp_path) in refusal(desk.joining(model=tmp_path))
    monkeypatch.setattr(joining, "num_experts_in", lambda given, num_bytes: num_experts_in(given, num_bytes << 10))
    assert refusal(desk.joining(memory_gib=0.001)).startswith("memory_gib: 0.001 GiB hold not one expert of ")


def test_a_node_without_weights_learns_from_the_controller_what_they_are(tiny: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors.index.json"):
        shutil.copy(tiny / name, bare / name)
    desk = Desk(tiny, outline=Outline(tiny, None))
    try:
        assert refusal(desk.joining(model=bare)).startswith("head: ")
    finally:
        desk.close()


def test_who_holds_the_seat_is_said_and_keeps_it(desk: Desk) -> None:
    keeper = desk.take("expert-1")
    check = desk.joining()
    with pytest.raises(
        SeatTakenError, match=rf"seat: expert-1 is held by pid 77 on machine-a at {NODE}:9, ready, for \d+ s; give"
    ):
        check.check()
    assert "expert-1 is held by pid 77 on machine-a" in desk.said[1]
    assert desk.thread.controller._book.seats["expert-1"].lease_id == keeper.lease_id


def test_a_seat_whose_holder_is_gone_is_waited_for_unasked(desk: Desk) -> None:
    """As after kill -9 of a node that is started again at once: its lease lives a little longer."""
    desk.take("expert-1", reports=False)
    assert refusal(desk.joining()).startswith("head: ")
    assert "expert-1 is held by pid 77" in desk.said[1]
    assert desk.thread.controller._book.seats["expert-1"].state == "lost"


def test_who_is_told_to_wait_waits_until_the_seat_is_free(desk: Desk) -> None:
    desk.take("expert-1")
    check = desk.joining(if_taken="wait")
    told: list[str] = []
    waiting = threading.Thread(target=lambda: told.append(refusal(check)), daemon=True)
    waiting.start()
    waiting.join(1.5)
    assert waiting.is_alive()
    assert desk.said[-1] == "waiting until expert-1 is free"
    desk.thread.call(_lose(desk, "expert-1"))
    waiting.join(20)
    assert told[0].startswith("head: ")


async def _lose(desk: Desk, seat: str) -> None:
    """And nobody claims it again."""
    book = desk.thread.controller._book
    book.lose(book.seats[seat])
    book.want(DesiredState.first(1, 1, 1))


def test_a_signal_ends_the_waiting(desk: Desk) -> None:
    desk.take("expert-1")
    check = desk.joining(if_taken="wait")
    check.stop.count = 1
    with pytest.raises(StopAsked):
        check.check()


class Command:
    """`expertfleet node` as a process of its own, whose temporary files can be counted."""

    def __init__(self, desk: Desk, tmp_path: Path, *flags: str, token: str = TOKEN) -> None:
        self.tmp = tmp_path / "tmp"
        self.tmp.mkdir()
        environ = {**plain_environment(os.environ), "EXPERTFLEET_CLUSTER_TOKEN": token, "TMPDIR": str(self.tmp)}
        words = [
            "node",
            "expert",
            "--seat=expert-1",
            f"--model={desk.model}",
            f"--controller={desk.address}",
            f"--host={NODE}",
        ]
        given = [word for word in words if not any(flag.split("=")[0] == word.split("=")[0] for flag in flags)]
        command = [sys.executable, "-m", "expertfleet.cluster", *given, f"--head={HEAD}:1", *flags]
        self.process = RoleProcess(command, environ)

    def end(self) -> tuple[int, str]:
        status = self.process.process.wait(60)
        assert list(self.tmp.iterdir()) == [], "something of Ray was begun"
        return status, self.process.lines[-1]


@pytest.mark.parametrize("flags", [(), ("--if-taken=end",)])
def test_a_second_node_ends_with_status_one_and_has_started_nothing(
    desk: Desk, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    desk.take("expert-1")
    ready = tmp_path / "ready"
    ready.touch()
    status, line = Command(desk, tmp_path, f"--ready-file={ready}", *flags).end()
    assert status == 1
    assert line.startswith("expertfleet: error: seat: expert-1 is held by pid 77 on machine-a")
    assert ready.exists(), "it is the other one's"
    assert desk.thread.controller.desired == WANTED


def test_a_node_that_waits_ends_at_a_signal_and_leaves_the_seat_alone(desk: Desk, tmp_path: Path) -> None:
    keeper = desk.take("expert-1")
    command = Command(desk, tmp_path, "--if-taken=wait")
    command.process.wait_for("waiting until expert-1 is free")
    assert command.process.end() == 0
    assert list(command.tmp.iterdir()) == []
    assert desk.thread.controller.desired == WANTED
    assert desk.thread.controller._book.seats["expert-1"].lease_id == keeper.lease_id


@pytest.mark.parametrize(
    ("flags", "token", "flag"),
    [
        ((), "of another fleet altogether", "cluster_token: "),
        (("--host=10.255.255.254",), TOKEN, "host: "),
        (("--tls-dir=/no/such",), TOKEN, "--tls-dir: "),
        ((), TOKEN, "head: "),
    ],
)
def test_a_node_that_cannot_join_is_one_line_and_status_one(
    desk: Desk, tmp_path: Path, flags: tuple[str, ...], token: str, flag: str
) -> None:
    status, line = Command(desk, tmp_path, *flags, token=token).end()
    assert status == 1
    assert line.startswith(f"expertfleet: error: {flag}")


def test_a_plain_process_at_a_served_seat_ends_with_status_one(desk: Desk, tmp_path: Path) -> None:
    keeper = desk.take("expert-1", desk.address)  # where somebody listens
    environ = {**plain_environment(os.environ), "EXPERTFLEET_CLUSTER_TOKEN": TOKEN}
    words = (f"--model={desk.model}", "--seat=expert-1", f"--controller={desk.address}", "--memory-gib=1")
    done = subprocess.run(
        [sys.executable, "-m", "expertfleet.expert_workers", *words],
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "expertfleet expert_workers: error: seat: expert-1 is held by pid 77 on machine-a" in done.stderr
    assert desk.thread.controller._book.seats["expert-1"].lease_id == keeper.lease_id


def test_the_head_refuses_a_host_and_a_port_that_it_cannot_have_before_ray_starts(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPERTFLEET_CLUSTER_TOKEN", TOKEN)
    words = ["head", f"--model={tiny}", f"--storage={tmp_path / 'store'}"]
    assert main([*words, "--host=10.255.255.254"]) == 1
    assert "host: 10.255.255.254 is no address of this machine" in capsys.readouterr().err
    with socket.socket() as taken:
        taken.bind((HEAD, 0))
        taken.listen()
        assert main([*words, f"--host={HEAD}", f"--controller-port={taken.getsockname()[1]}"]) == 1
    assert "--controller-port" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()
