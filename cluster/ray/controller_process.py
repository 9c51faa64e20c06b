"""What a supervisor starts as the controller's process, in every fleet.

The supervisor knows nothing of what happens inside: it leaves a ``ControllerSpec`` in the run's private folder, and beside it the address of
Ray's head as soon as that is up.
"""

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ...membership.port_probe import why_unreachable
from ...membership.security import WireSecurity
from ..atomic_file import write_whole
from ..controller.controller import Controller
from .launcher import Launcher
from .settings import RaySettings
from .supervised_process import SupervisedProcess

_HOST = f"{__package__}.controller_host"


@dataclass(frozen=True)
class ControllerSpec:
    """A controller, and how its process treats nodes (see ``NodeActors``)."""

    make_controller: Callable[[], Controller]
    address: str  # where that one serves
    wire: WireSecurity
    gather_s: float = 0.0
    forget_s: float = 600.0
    offers_file: Path | None = None

    @staticmethod
    def load(path: Path) -> "ControllerSpec":
        spec = pickle.loads(path.read_bytes())
        assert isinstance(spec, ControllerSpec)
        return spec


class ControllerProcess(SupervisedProcess):
    def __init__(
        self, spec: ControllerSpec, settings: RaySettings, launcher: Launcher, environ: Mapping[str, str]
    ) -> None:
        spec_file, self._ray_file = (launcher.run_dir / name for name in ("controller.pickle", "ray-address"))
        spec_file.write_bytes(pickle.dumps(spec))
        self.address = spec.address
        files = [str(spec_file), str(self._ray_file)]
        super().__init__("controller", _HOST, files, settings.driver_environment(environ), launcher, warns_here=True)

    def join_ray(self, address: str) -> None:
        """Ray's head is up at ``address``."""
        write_whole(self._ray_file, address)

    def answers(self) -> bool:
        """Raises ClusterError with the reason when the process ended before it was heard."""
        self.check_start()
        return not why_unreachable(self.address)
