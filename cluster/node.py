"""``expertfleet node``: one machine's place for one worker of a fleet whose head is elsewhere.

Knows nothing of what the worker does. 1. The worker's settings are checked and laid into a file for it; 2. a Ray node joins the
head and offers the seat, for which the head hires the worker; 3. while it serves, ``--ready-file`` exists; 4. SIGTERM has the
worker leave: what it holds is taken over, what it serves is finished, and then everything here ends.
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

from ..attention_workers.config import AttentionConfig
from ..expert_workers.config import ExpertConfig
from ..membership.wire import secure
from ..proto.address import split_address
from ..proto.errors import Code, FleetError
from ..proto.generated import membership_pb2 as pb
from ..settings.reader import add_flags, check_address, option, resolve, shares, within, write_file
from . import actors
from .errors import ClusterError
from .head import check_membership
from .launcher import Launcher, make_run_dir
from .membership_client import MembershipClient
from .ray_node import RayNode
from .ray_settings import RaySettings, token_from
from .reach import why_unreachable
from .stop import Stop, StopAsked
from .wanted import split_seat

RoleConfig = ExpertConfig | AttentionConfig
_POLL_S = 0.5
_SAY_EVERY_S = 15.0
_AWAY_S = 30.0
_SERVING = ("ready", "leaving", "draining")


@dataclass(frozen=True)
class NodeConfig:
    """What a node is told beside its worker's own settings."""

    head: str = option(help="HOST:PORT of the head's Ray")
    leave_s: float = option(300.0, "seconds after SIGTERM for others to take over what the worker holds")
    ready_file: Path | None = option(None, "file that exists while the worker serves")

    def __post_init__(self) -> None:
        check_address("head", self.head)
        within("leave_s", self.leave_s, 0, 86_400)


def add_node_flags(parser: argparse.ArgumentParser) -> None:
    roles = parser.add_subparsers(dest="role", required=True, metavar="ROLE")
    for role, (config, _) in actors.ROLES.items():
        one = roles.add_parser(role, help=config.__doc__)
        add_flags(one, NodeConfig)
        add_flags(one, config)


def read_node_config(arguments: Mapping[str, Any], environ: Mapping[str, str]) -> tuple[NodeConfig, RoleConfig]:
    """From environment and flags. Raises SettingsError."""
    role, _ = actors.ROLES[arguments["role"]]
    own, workers = shares((NodeConfig, role), environ)
    node = resolve(NodeConfig, flags=arguments, environ=own)
    config: RoleConfig = resolve(role, flags=arguments, environ=workers)
    if split_seat(config.seat)[0] != arguments["role"] or split_seat(config.seat)[1] < 0:
        raise ValueError(f"seat: {config.seat!r} is not {arguments['role']}-N")
    if config.controller is None:
        raise ValueError("controller: none is given; HOST:PORT of the head's controller")
    check_membership(config, config.host)
    return node, config


def run_node(node: NodeConfig, config: RoleConfig) -> int:
    stop = Stop()
    stop.install()
    secure(config.wire)
    launcher = Launcher(make_run_dir())
    try:
        _wait_for_head(node.head, stop)
        while (ray := _joined(node.head, config, launcher, stop)) is None:
            launcher.end()
            launcher = Launcher(make_run_dir())
        print(f"node offers {config.seat} to {node.head}", flush=True)
        _look_after(node, config, launcher, ray, stop)
    except StopAsked:
        return 0
    finally:
        stop.tolerated = sys.maxsize
        _mark(node.ready_file, False)
        launcher.end()
    return 0


def _joined(head: str, config: RoleConfig, launcher: Launcher, stop: Stop) -> RayNode | None:
    """None when it is worth another try: a head that many join at once, or a busy machine, can be too slow for Ray."""
    settings = RaySettings(launcher.run_dir, config.threads, token=token_from(config.cluster_token), host=config.host)
    ray = RayNode(settings, launcher, settings.join_command(sys.executable, head, config.seat))
    write_file(config, _role_file(launcher))
    try:
        ray.start({**os.environ, actors.ROLE_FILE: str(_role_file(launcher))}, stop.wait_until)
    except ClusterError as error:
        if why_unreachable(head):
            raise
        _say(f"trying again: {error}")
        return None
    return ray


def _look_after(node: NodeConfig, config: RoleConfig, launcher: Launcher, ray: RayNode, stop: Stop) -> None:
    assert config.controller is not None
    with MembershipClient(config.controller) as controller:
        watch = _Watch(controller, config, _role_file(launcher), node.ready_file)
        try:
            while True:
                launcher.check()
                ray.supervise()
                with contextlib.suppress(FleetError):  # whoever serves goes on while the controller is away
                    watch.look()
                stop.wait_until(lambda: False, _POLL_S)
        except StopAsked:
            stop.tolerated = 1
            _leave(watch, controller, config.seat, node.leave_s, stop)
            ray.leave(stop.wait_until)


def _role_file(launcher: Launcher) -> Path:
    return launcher.run_dir / "worker.yaml"


def _wait_for_head(head: str, stop: Stop) -> None:
    said = -_SAY_EVERY_S
    while reason := why_unreachable(head):
        if time.monotonic() - said >= _SAY_EVERY_S:
            said = time.monotonic()
            _say(f"waiting for the head at {head}: {reason}")
        stop.wait_until(lambda: False, _POLL_S)


class _Watch:
    """What is known of this node's worker."""

    def __init__(
        self, controller: MembershipClient, config: RoleConfig, role_file: Path, ready_file: Path | None
    ) -> None:
        self._controller, self._config, self._ready_file = controller, config, ready_file
        self._failure = actors.failure_file(role_file)
        self._state = ""

    def look(self) -> bool:
        """Whether the seat is still there.

        Raises ClusterError when the worker cannot work, and FleetError while the controller is away.
        """
        if self._failure.exists():
            raise ClusterError(f"{self._config.seat}: {self._failure.read_text()}")
        workers = self._controller.status(self._config.seat).workers
        state = next((worker.state for worker in workers if self._is_ours(worker)), "")
        if state != self._state:
            self._state = state
            _say(f"{self._config.seat} {state or 'has nobody'}")
            _mark(self._ready_file, state in _SERVING)
        return any(worker.seat == self._config.seat for worker in workers)

    def _is_ours(self, worker: pb.WorkerStatus) -> bool:
        if worker.seat != self._config.seat or not worker.address:
            return False
        return split_address(worker.address)[0] == self._config.host


def _leave(watch: _Watch, controller: MembershipClient, seat: str, leave_s: float, stop: Stop) -> None:
    """A second signal does not wait; nor does it help to wait for a controller that is away for long."""
    _say(f"{seat} leaves; a second signal ends it at once")
    is_asked = False
    heard_at = time.monotonic()

    def is_over() -> bool:
        nonlocal is_asked, heard_at
        try:
            if not is_asked:
                controller.drain(seat)
                is_asked = True
            left = not watch.look()
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
    except (FleetError, ClusterError) as error:
        _say(f"{seat} ends without being taken over: {error}")
    except StopAsked:
        _say(f"{seat} ends at once")


def _mark(ready_file: Path | None, is_ready: bool) -> None:
    if ready_file is None:
        return
    if is_ready:
        ready_file.touch()
    else:
        ready_file.unlink(missing_ok=True)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
