"""``expertfleet node``: one machine's place for one worker of a fleet whose head is elsewhere.

Knows nothing of what the worker does. 1. The controller is asked whether the node may join and its seat is free; 2. the worker's settings
are laid into a file for it; 3. a Ray node joins the head with an offer of its own, for which the head hires the worker; 4. while that
serves, ``--ready-file`` exists; 5. SIGTERM has the worker leave: what it holds is taken over, what it serves is finished, and then
everything here ends. Nothing is done to a seat that another process holds.
"""

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...membership.client import MembershipClient
from ...membership.port_probe import why_unreachable
from ...membership.security import secure
from ...proto.errors import Code, FleetError
from ...settings.flags import add_flags
from ...settings.option import Settings, option
from ...settings.reader import check_address, resolve, shares, write_file
from ..errors import ClusterError
from ..ray.launcher import Launcher, make_run_dir
from ..ray.node import RayNode
from ..ray.offer import Offer
from ..ray.settings import RaySettings, token_from
from ..ray.worker_actor import CONFIGS, WORKERS_DIR, failure_file, settings_file
from .head import check_membership
from .joining import IfTaken, Joining, RoleConfig, SeatTakenError, describe_holder
from .stop import Stop, StopAsked

_POLL_S = 0.5
_TRIES = 20
_AWAY_S = 30.0
_SERVING = ("ready", "leaving", "draining")


@dataclass(frozen=True)
class NodeConfig(Settings):
    """What a node is told beside its worker's own settings."""

    head: str = option(help="HOST:PORT of the head's Ray", group="network", common=True)
    leave_s: float = option(
        300.0,
        "seconds after SIGTERM for others to take over what the worker holds",
        group="failure",
        range=(0, 86_400),
    )
    ready_file: Path | None = option(None, "file that exists while the worker serves", group="workers")
    if_taken: IfTaken = option(
        "end", "what to do while another process holds the seat: end (with status 1) or wait", group="failure"
    )
    head_wait_s: float = option(
        600.0,
        "seconds to wait for a head that does not answer, at the start",
        group="failure",
        range=(0, 86_400 * 30),
    )

    def check(self) -> None:
        super().check()
        check_address("head", self.head)


def add_node_flags(parser: argparse.ArgumentParser) -> None:
    roles = parser.add_subparsers(dest="role", required=True, metavar="ROLE")
    for role, config in CONFIGS.items():
        add_flags(roles.add_parser(role, help=config.__doc__), NodeConfig, config)


def read_node_config(arguments: Mapping[str, Any], environ: Mapping[str, str]) -> tuple[NodeConfig, RoleConfig]:
    """From environment and flags. Raises SettingsError."""
    role = CONFIGS[arguments["role"]]
    own, workers = shares((NodeConfig, role), environ)
    node = resolve(NodeConfig, flags=arguments, environ=own)
    config: RoleConfig = resolve(role, flags=arguments, environ=workers)
    if config.controller is None:
        raise ValueError("controller: none is given; HOST:PORT of the head's controller")
    check_membership(config, config.host)
    return node, config


def run_node(node: NodeConfig, config: RoleConfig) -> int:
    assert config.controller is not None
    stop = Stop()
    stop.install()
    secure(config.wire)
    joining = Joining(node.head, config.controller, config, node.head_wait_s, node.if_taken, stop, _say)
    try:
        while True:
            joining.check()
            try:
                return _offer(node, config, stop)
            except SeatTakenError as taken:
                if node.if_taken == "end":
                    raise
                _say(str(taken))
    except StopAsked:
        return 0


def _offer(node: NodeConfig, config: RoleConfig, stop: Stop) -> int:
    """Returns when a signal has ended it. Raises SeatTakenError once another process has the seat."""
    offer, launcher = Offer.new(config.seat), Launcher(make_run_dir())
    ready = _ReadyFile(node.ready_file)
    tries = 0
    try:
        while (ray := _joined(node.head, config, offer, launcher, stop, is_last=tries == _TRIES)) is None:
            tries += 1
            launcher.end()
            launcher = Launcher(make_run_dir())
        print(f"node offers {config.seat} to {node.head}", flush=True)
        _look_after(node, config, offer, launcher, ray, ready, stop)
    finally:
        stop.tolerated = sys.maxsize
        ready.mark(False)
        launcher.end()
        stop.tolerated = 0
    return 0


def _joined(
    head: str, config: RoleConfig, offer: Offer, launcher: Launcher, stop: Stop, is_last: bool
) -> RayNode | None:
    """None when it is worth another try: a head that many join at once, or a busy machine, can be too slow for Ray."""
    run_dir, token = launcher.run_dir, token_from(config.cluster_token)
    settings = RaySettings(run_dir, config.threads, token=token, host=config.host, offer=offer)
    ray = RayNode(settings, launcher, settings.join_command(sys.executable, head))
    write_file(config, settings_file(run_dir, config.seat))
    try:
        ray.start({**os.environ, WORKERS_DIR: str(run_dir)}, stop.wait_until)
    except ClusterError as error:
        if is_last or why_unreachable(head):
            raise
        _say(f"trying again: {error}")
        return None
    return ray


def _look_after(
    node: NodeConfig,
    config: RoleConfig,
    offer: Offer,
    launcher: Launcher,
    ray: RayNode,
    ready: "_ReadyFile",
    stop: Stop,
) -> None:
    assert config.controller is not None
    with MembershipClient(config.controller) as controller:
        watch = _Watch(controller, offer, failure_file(launcher.run_dir, config.seat), ready)
        try:
            while True:
                launcher.check()
                ray.supervise()
                with contextlib.suppress(FleetError):  # whoever serves goes on while the controller is away
                    watch.look()
                stop.wait_until(lambda: False, _POLL_S)
        except StopAsked:
            stop.tolerated = 1
            _leave(watch, controller, offer, node.leave_s, stop)
            ray.leave(stop.wait_until)
        except SeatTakenError:
            ray.leave(stop.wait_until)
            raise


class _ReadyFile:
    """Taken away by who has made it alone: another node may have been told of the same one."""

    def __init__(self, path: Path | None) -> None:
        self._path, self._is_made = path, False

    def mark(self, is_ready: bool) -> None:
        if self._path is None:
            return
        if is_ready:
            self._path.touch()
        elif self._is_made:
            self._path.unlink(missing_ok=True)
        self._is_made = is_ready


class _Watch:
    """What is known of this node's worker."""

    def __init__(self, controller: MembershipClient, offer: Offer, failure: Path, ready: _ReadyFile) -> None:
        self._controller, self._offer, self._ready = controller, offer, ready
        self._failure = failure
        self._state = ""

    def look(self) -> bool:
        """Whether the seat is still there.

        Raises ClusterError when the worker cannot work, SeatTakenError when the seat is another's, and FleetError while the controller is
        away.
        """
        if self._failure.exists():
            raise ClusterError(f"{self._offer.seat}: {self._failure.read_text()}")
        worker = next(iter(self._controller.status(self._offer.seat).workers), None)
        if worker is not None and worker.lease_id and worker.offer != self._offer.key:
            self._tell("")
            raise SeatTakenError(f"seat: {describe_holder(worker)}")
        self._tell(worker.state if worker is not None and worker.offer == self._offer.key else "")
        return worker is not None

    def _tell(self, state: str) -> None:
        if state != self._state:
            self._state = state
            _say(f"{self._offer.seat} {state or 'has nobody'}")
            self._ready.mark(state in _SERVING)


def _leave(watch: _Watch, controller: MembershipClient, offer: Offer, leave_s: float, stop: Stop) -> None:
    """A second signal does not wait; nor does it help to wait for a controller that is away for long."""
    seat = offer.seat
    _say(f"{seat} leaves; a second signal ends it at once")
    is_asked = False
    heard_at = time.monotonic()

    def is_over() -> bool:
        nonlocal is_asked, heard_at
        try:
            left = not watch.look()
            if not (is_asked or left):
                controller.drain(seat, offer.key)
                is_asked = True
        except FleetError as error:
            if error.code is Code.BAD_REQUEST:
                raise
            if time.monotonic() - heard_at > _AWAY_S:
                raise ClusterError(f"no controller answers ({error})") from error
            return False
        heard_at = time.monotonic()
        return left

    try:
        if not stop.wait_until(is_over, leave_s):
            _say(f"{seat} was not taken over within {leave_s:g} s, and ends")
    except SeatTakenError as error:
        _say(f"{seat} was not this node's: {error}")
    except (FleetError, ClusterError) as error:
        _say(f"{seat} ends without being taken over: {error}")
    except StopAsked:
        _say(f"{seat} ends at once")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
