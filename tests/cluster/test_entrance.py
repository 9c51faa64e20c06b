"""What plain workers and gateways find out before they start anything, against a controller on loopback."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme
from fleet_process import plain_environment

from expertfleet.checkpoint.files import CheckpointFiles
from expertfleet.cluster.commands.gateway_process import claim_port
from expertfleet.cluster.commands.resource_plan import fleet_shape
from expertfleet.cluster.controller.controller import Controller
from expertfleet.cluster.controller.controller_thread import ControllerThread
from expertfleet.cluster.controller.desired_state import DesiredState
from expertfleet.gateway.engine.backend import Backend
from expertfleet.gateway.engine.controller_client import ControllerClient
from expertfleet.membership import security
from expertfleet.membership.entrance import EntranceError, check_entrance
from expertfleet.membership.security import WireSecurity

TOKEN, OTHER_TOKEN = "a token of these tests alone", "a token of another fleet"
HEAD, HERE = "127.0.0.2", {"host": "127.0.0.3"}


@pytest.fixture(autouse=True)
def open_again() -> Iterator[None]:
    yield
    security.secure(WireSecurity())


@contextmanager
def controller(model: Path, channels: WireSecurity | None = None) -> Iterator[str]:
    security.secure(channels or WireSecurity(token=TOKEN))
    with CheckpointFiles.open(model) as checkpoint:
        shape = fleet_shape(checkpoint, "bfloat16")
    thread = ControllerThread(Controller(shape, DesiredState.first(1, 2, 1), HEAD))
    try:
        yield thread.controller.address
    finally:
        thread.stop()


def test_who_has_the_fleets_token_may_come_in_and_who_finds_nobody_may_wait(tiny: Path) -> None:
    with controller(tiny) as address:
        check_entrance(WireSecurity(token=TOKEN), HERE, address)
    check_entrance(WireSecurity(token=TOKEN), HERE, f"{HEAD}:{claim_port(HEAD, 0, '')}")
    check_entrance(WireSecurity(token=TOKEN), HERE, "no-such-machine.invalid:7411")
    check_entrance(WireSecurity(token=TOKEN), HERE, None)


@pytest.mark.parametrize(
    ("token", "told"),
    [(OTHER_TOKEN, "refuses it"), (TOKEN + "s", "refuses it"), ("", "none is given to")],
)
def test_another_fleets_token_and_none_are_told(tiny: Path, token: str, told: str) -> None:
    with controller(tiny) as address, pytest.raises(EntranceError, match=rf"^cluster_token: .*{told}.*--cluster-token"):
        check_entrance(WireSecurity(token=token), HERE, address)


@pytest.mark.parametrize("flag", ["host", "admin_host"])
@pytest.mark.parametrize("host", ["192.0.2.7", "2001:db8::7", "no-such-machine.invalid"])
def test_an_address_that_is_not_its_own_is_told_with_its_flag(flag: str, host: str) -> None:
    with pytest.raises(EntranceError, match=rf"^{flag}: .*{host}.*--{flag.replace('_', '-')}"):
        check_entrance(WireSecurity(), HERE | {flag: host}, None)


@pytest.mark.parametrize(("ours", "theirs"), [("one", "none"), ("none", "one"), ("another", "one")])
def test_tls_on_one_side_only_or_of_two_authorities_is_told(
    tiny: Path, tmp_path: Path, certify: Callable[..., Path], ours: str, theirs: str
) -> None:
    folders = {name: certify(tmp_path / name, trustme.CA()) for name in ("one", "another")}
    with (
        controller(tiny, WireSecurity(folders.get(theirs), TOKEN)) as address,
        pytest.raises(EntranceError, match=rf"^tls_dir: .*{address}"),
    ):
        check_entrance(WireSecurity(folders.get(ours), TOKEN), HERE, address)


ROLES = {
    "gateway": ("--seat=gateway-1", "--port=0"),
    "expert_workers": ("--seat=expert-1", "--memory-gib=1"),
    "attention_workers": ("--seat=attention-0", "--max-model-len=1024"),
}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    ("flag", "told"),
    [(f"--cluster-token={OTHER_TOKEN}", "cluster_token: "), ("--seat=controller-1", "seat: 'controller-1' is not ")],
)
def test_a_process_that_cannot_come_in_is_one_line_and_status_one(tiny: Path, role: str, flag: str, told: str) -> None:
    with controller(tiny) as address:
        words = [f"--model={tiny}", f"--controller={address}", f"--cluster-token={TOKEN}", *ROLES[role], flag]
        done = subprocess.run(
            [sys.executable, "-m", f"expertfleet.{role}", *words],
            env=plain_environment(os.environ),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    (line,) = done.stderr.splitlines()
    assert told in line
    assert OTHER_TOKEN not in line
    assert (done.returncode, done.stdout) == (1, "")


def test_a_gateway_whose_controller_comes_later_and_refuses_it_ends_unless_it_was_accepted_before(tiny: Path) -> None:
    async def refused(token: str) -> str:
        security.secure(WireSecurity(token=token))
        fleet = ControllerClient(address, "gateway-1", Backend(), lambda: 0)
        running = asyncio.create_task(fleet.run("127.0.0.1", 9))
        try:
            async with asyncio.timeout(10):
                await fleet.refused.wait()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await fleet.close()
        return fleet.refusal

    with controller(tiny) as address:
        told = asyncio.run(refused(OTHER_TOKEN))
    assert told.startswith(f"cluster_token: the controller at {address} refuses it")
