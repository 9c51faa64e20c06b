"""The controller's process below a guard, without any Ray: it serves, is started again, and says why it cannot serve."""

import os
import signal
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from until import until

from expertfleet.cluster.commands.gateway_process import claim_port
from expertfleet.cluster.controller.controller import Controller
from expertfleet.cluster.controller.desired_state import DesiredState
from expertfleet.cluster.controller.seats import FleetShape
from expertfleet.cluster.errors import ClusterError
from expertfleet.cluster.ray.controller_process import ControllerProcess, ControllerSpec
from expertfleet.cluster.ray.launcher import Launcher, make_run_dir
from expertfleet.cluster.ray.settings import RaySettings
from expertfleet.membership.client import MembershipClient
from expertfleet.membership.security import WireSecurity, secure

SHAPE = FleetShape(3, 8, 1, "f00", "bfloat16")
TOKEN = WireSecurity(token="a token of sixteen letters")
HOST = "127.0.0.1"


@pytest.fixture
def launcher() -> Iterator[Launcher]:
    started = Launcher(make_run_dir())
    yield started
    started.end()


@pytest.fixture(autouse=True)
def token() -> Iterator[None]:
    secure(TOKEN)
    yield
    secure(WireSecurity())


def start(launcher: Launcher, port: int, state_file: Path, offers_file: Path | None = None) -> ControllerProcess:
    make = partial(Controller, SHAPE, DesiredState.first(1, 2, 1.0), HOST, port, state_file=state_file)
    spec = ControllerSpec(make, f"{HOST}:{port}", TOKEN, offers_file=offers_file)
    process = ControllerProcess(spec, RaySettings(launcher.run_dir), launcher, os.environ)
    process.start()
    return process


def test_a_killed_controller_is_started_again_and_keeps_what_was_desired(launcher: Launcher, tmp_path: Path) -> None:
    process = start(launcher, claim_port(HOST, 0, ""), tmp_path / "state.json")
    until(process.answers, 30)
    with MembershipClient(process.address) as client:
        client.drain("expert-1")
        first = process.pid
        os.kill(first, signal.SIGKILL)
        until(process.supervise, 10)
        until(process.answers, 30)
        assert process.pid != first
        status = client.status()
    assert [worker.seat for worker in status.workers] == ["controller", "attention-0", "expert-0"]


def reason_of_end(launcher: Launcher, process: ControllerProcess) -> str:
    until(lambda: process.has_ended, 30)
    with pytest.raises(ClusterError) as refusal:
        process.answers()
    return str(refusal.value)


def test_why_it_cannot_serve_is_one_line(launcher: Launcher, tmp_path: Path) -> None:
    port, state_file, offers_file = claim_port(HOST, 0, ""), tmp_path / "state.json", tmp_path / "offers.json"
    state_file.write_text("{}")
    told = reason_of_end(launcher, start(launcher, port, state_file))
    assert told.startswith(f"the controller ended with status 1: {state_file}: is not the state of a fleet")
    state_file.unlink()
    offers_file.write_text("[]")
    told = reason_of_end(launcher, start(launcher, port, state_file, offers_file))
    assert f"{offers_file}: does not say which offers" in told


def test_a_taken_port_is_named(launcher: Launcher, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        told = reason_of_end(launcher, start(launcher, port, tmp_path / "state.json"))
    assert str(port) in told
