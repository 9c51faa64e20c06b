"""``expertfleet head``: Ray's head and the controller of a fleet whose workers are on other machines.

Knows nothing of HTTP. No worker runs here. Everything that must outlive this process lies in ``--storage``: while it is away the
fleet goes on serving, and when it comes back, also elsewhere under the same address, it finds its workers where they were.
"""

import os
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ...checkpoint.checkpoint_headers import Outline
from ...checkpoint.files import CheckpointFiles
from ...membership.entrance import check_own
from ...membership.security import WireSettings, secure
from ...membership.worker_settings import WeightSettings
from ...proto.address import addresses_of, join_address
from ...settings.option import option
from ...settings.reader import check_host
from ..controller.controller import Controller
from ..controller.desired_state import DesiredState
from ..controller.placement_settings import PlacingSettings
from ..controller.seats import FleetShape
from ..controller.stragglers import SlowSettings
from ..ray.controller_process import ControllerSpec
from ..ray.fleet_head import FleetHead
from ..ray.launcher import Launcher, make_run_dir
from ..ray.settings import RaySettings, token_from
from .gateway_process import claim_port
from .joining import versions
from .resource_plan import fleet_shape
from .stop import Stop, StopAsked

_POLL_S = 0.5


@dataclass(frozen=True)
class HeadConfig(SlowSettings, PlacingSettings, WireSettings, WeightSettings):
    """Configuration of the head of a fleet on several machines."""

    storage: Path = option(
        help="directory that outlives this process: Ray's and the controller's state", group="failure", common=True
    )
    host: str = option(help="address of this machine, as its nodes and gateways reach it", group="network", common=True)
    ray_port: int = option(6379, "port that nodes join at", group="network", range=(1, 65535))
    controller_port: int = option(7411, "port of the controller", group="network", range=(1, 65535))
    replicas: float = option(
        1.0,
        "copies of each expert; `expertfleet scale` changes it until another number is given here",
        range=(1, 4096),
        common=True,
    )
    gather_s: float = option(
        5.0,
        "at the first start: seconds without a new node after which experts are laid out",
        group="workers",
        range=(0, 3600),
    )
    forget_s: float = option(
        600.0, "seconds that a seat waits for its node to come back", group="failure", range=(1, 86_400 * 30)
    )

    def check(self) -> None:
        super().check()
        check_membership(self, self.host)
        if self.ray_port == self.controller_port:
            raise ValueError(f"controller_port: {self.controller_port} is Ray's port as well; choose another")


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
        head = FleetHead(
            _controller(config, shape), _ray_settings(config, launcher.run_dir), launcher, os.environ.copy()
        )
        head.start(stop.wait_until)
        print(f"head {head.ray.address} controller {head.controller.address}", flush=True)
        while True:
            head.supervise()
            stop.wait_until(lambda: False, _POLL_S)
    except StopAsked:
        return 0
    finally:
        stop.tolerated = sys.maxsize
        launcher.end()  # workers, which are on other machines' nodes, stay


def _controller(config: HeadConfig, shape: FleetShape) -> ControllerSpec:
    state_file = config.storage / "fleet.json"
    make_controller = partial(
        Controller,
        shape,
        first_desired(config.replicas, state_file, config.storage / "replicas"),
        config.host,
        config.controller_port,
        state_file=state_file,
        seats_are_offered=True,
        slow=config.slow_rule,
        outline=Outline(config.model, config.shared_model),
        placing=config.placing,
        versions=versions(),
    )
    address, offers_file = join_address(config.host, config.controller_port), config.storage / "offers.json"
    return ControllerSpec(make_controller, address, config.wire, config.gather_s, config.forget_s, offers_file)


def _ray_settings(config: HeadConfig, run_dir: Path) -> RaySettings:
    token = token_from(config.cluster_token)
    return RaySettings(run_dir, token=token, host=config.host, port=config.ray_port, storage=config.storage)


def first_desired(replicas: float, state_file: Path, told_file: Path) -> DesiredState:
    """What was wanted last; but where ``--replicas`` is another one than at the last start, that goes before `scale`'s."""
    wanted = DesiredState.load(state_file) or DesiredState((), (), replicas)
    told = told_file.read_text() if told_file.exists() else ""
    if told != str(replicas):
        wanted = wanted.with_replicas(replicas)
        wanted.save(state_file)
        told_file.write_text(str(replicas))
    return wanted
