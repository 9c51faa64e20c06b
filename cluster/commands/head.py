"""``expertfleet head``: Ray's head and the controller of a fleet whose workers are on other machines.

Knows nothing of HTTP. No worker runs here. Everything that must outlive this process lies in ``--storage``: while it is away the
fleet goes on serving, and when it comes back, also elsewhere under the same address, it finds its workers where they were.
"""

import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...checkpoint.checkpoint_headers import Outline
from ...checkpoint.files import CheckpointFiles
from ...membership.entrance import check_own
from ...membership.security import WireSettings, secure
from ...proto.address import addresses_of
from ...settings.reader import check_host, option, within
from ..controller.controller import Controller
from ..controller.controller_thread import ControllerThread
from ..controller.desired_state import DesiredState
from ..controller.placement_settings import PlacingSettings
from ..controller.stragglers import SlowSettings
from ..ray.head import RayHead
from ..ray.launcher import Launcher, make_run_dir
from ..ray.settings import RaySettings, prepare_driver, token_from
from .gateway_process import claim_port
from .joining import versions
from .resource_plan import fleet_shape
from .stop import Stop, StopAsked

_POLL_S = 0.5
_END_S = 10.0


@dataclass(frozen=True)
class HeadConfig(WireSettings, SlowSettings, PlacingSettings):
    """Configuration of the head of a fleet on several machines."""

    model: Path = option(
        help="checkpoint directory (its config, index and the heads of its files are read, no weights)"
    )
    storage: Path = option(help="directory that outlives this process: Ray's and the controller's state")
    host: str = option(help="address of this machine, as its nodes and gateways reach it")
    shared_model: Path | None = option(
        None, "a second directory with the checkpoint, such as a network mount: read where --model lacks a file"
    )
    ray_port: int = option(6379, "port that nodes join at")
    controller_port: int = option(7411, "port of the controller")
    replicas: float = option(
        1.0, "copies of each expert; `expertfleet scale` changes it until another number is given here"
    )
    dtype: Literal["bfloat16", "float32"] = option("bfloat16", "dtype of the fleet's activations")
    gather_s: float = option(5.0, "at the first start: seconds without a new node after which experts are laid out")
    forget_s: float = option(600.0, "seconds that a seat waits for its node to come back")

    def __post_init__(self) -> None:
        self.check_wire()
        check_membership(self, self.host)
        for name in ("ray_port", "controller_port"):
            within(name, getattr(self, name), 1, 65535)
        if self.ray_port == self.controller_port:
            raise ValueError(f"controller_port: {self.controller_port} is Ray's port as well; choose another")
        self.check_slow()
        self.check_placing()
        within("replicas", self.replicas, 1, 4096)
        within("gather_s", self.gather_s, 0, 3600)
        within("forget_s", self.forget_s, 1, 86_400 * 30)


def check_membership(settings: WireSettings, host: str) -> None:
    """What every machine of such a fleet needs. Raises ValueError."""
    if not settings.cluster_token:
        raise ValueError("cluster_token: none is given, and machines of a fleet must know each other by one")
    check_host("host", host)
    found = addresses_of(host)
    if found and all(each.is_unspecified or str(each) in ("127.0.0.1", "::1") for each in found):
        raise ValueError(
            f"host: {host} is no address that other machines have for this one; give its own "
            "(to try a fleet on one machine: 127.0.0.2, 127.0.0.3, …)"
        )


def run_head(config: HeadConfig) -> int:
    stop = Stop()
    stop.install()
    secure(config.wire)
    check_own(config.host)
    claim_port(config.host, config.controller_port, "--controller-port")
    config.storage.mkdir(parents=True, exist_ok=True)
    with CheckpointFiles.open(config.model, config.shared_model) as checkpoint:
        shape = fleet_shape(checkpoint, config.dtype)
    launcher = Launcher(make_run_dir())
    try:
        settings = RaySettings(
            launcher.run_dir,
            token=token_from(config.cluster_token),
            host=config.host,
            port=config.ray_port,
            storage=config.storage,
        )
        head = RayHead(settings, launcher)
        head.start(os.environ.copy(), stop.wait_until)
        state_file = config.storage / "fleet.json"
        wanted = first_wanted(config.replicas, state_file, config.storage / "replicas")
        controller = Controller(
            shape,
            wanted,
            config.host,
            config.controller_port,
            state_file=state_file,
            seats_are_offered=True,
            slow=config.slow_rule,
            outline=Outline(config.model, config.shared_model),
            placing=config.placing,
            versions=versions(),
        )
        thread = ControllerThread(controller)
        _hire_in_background(config, settings, head, _Controlled(thread), stop)
        print(f"head {head.address} controller {controller.address}", flush=True)
        while True:
            launcher.check()
            head.supervise()
            stop.wait_until(lambda: False, _POLL_S)
    except StopAsked:
        return 0
    finally:
        stop.tolerated = sys.maxsize
        stop.run(_leave_ray, _END_S)
        launcher.end()


def _leave_ray() -> None:
    """Its workers stay."""
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()


def first_wanted(replicas: float, state_file: Path, told_file: Path) -> DesiredState:
    """What was wanted last; but where ``--replicas`` is another one than at the last start, that goes before `scale`'s."""
    wanted = DesiredState.load(state_file) or DesiredState((), (), replicas)
    told = told_file.read_text() if told_file.exists() else ""
    if told != str(replicas):
        wanted = wanted.with_replicas(replicas)
        wanted.save(state_file)
        told_file.write_text(str(replicas))
    return wanted


def _hire_in_background(
    config: HeadConfig, settings: RaySettings, head: RayHead, controller: "_Controlled", stop: Stop
) -> None:
    """On a thread of its own: Ray's calls wait while ``gcs_server`` is away, which the main thread starts again."""
    prepare_driver(os.environ, settings)
    from ..ray import node_actors
    from ..ray.driver import connect

    connect(head.address, stop.wait_until)
    stop.install()  # NOTE: Ray has put handlers of its own in the place of ours
    hires = node_actors.NodeActors(
        controller, config.gather_s, config.forget_s, head.renew, config.storage / "offers.json"
    )
    threading.Thread(target=node_actors.keep_hiring, args=(hires,), name="hiring", daemon=True).start()


class _Controlled:
    def __init__(self, thread: ControllerThread) -> None:
        self._thread, self._controller = thread, thread.controller

    def wanted(self) -> DesiredState:
        return self._controller.wanted

    def occupied(self) -> set[str]:
        return self._thread.call(self._controller.occupied())

    def absent(self) -> set[str]:
        return self._thread.call(self._controller.absent())

    def offer(self, seats: dict[str, str]) -> None:
        self._thread.call(self._controller.offer(seats))

    def forget(self, seats: list[str]) -> None:
        self._thread.call(self._controller.forget(seats))
