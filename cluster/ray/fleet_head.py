"""The head of every fleet below one guard: Ray's head and the controller's process, which are started and supervised here.

The head knows nothing of workers and gateways.
"""

from collections.abc import Mapping

from ..errors import ClusterError
from .controller_process import ControllerProcess, ControllerSpec
from .head import RayHead
from .launcher import Launcher
from .node import WaitUntil
from .settings import RaySettings

_START_S = 60.0


class FleetHead:
    def __init__(
        self, spec: ControllerSpec, settings: RaySettings, launcher: Launcher, environ: Mapping[str, str]
    ) -> None:
        self.ray = RayHead(settings, launcher)
        self.controller = ControllerProcess(spec, settings, launcher, environ)
        self._launcher, self._environ = launcher, environ

    def start(self, wait_until: WaitUntil) -> None:
        """Returns when the controller answers; its process imports its code while Ray starts. Raises ClusterError."""
        self.controller.start()
        self.ray.start(self._environ, wait_until)
        self.controller.join_ray(self.ray.address)
        if not wait_until(self.controller.answers, _START_S):
            raise ClusterError(f"the controller does not answer at {self.controller.address} after {_START_S:g} s")

    def supervise(self) -> None:
        """Raises ClusterError once the guard or Ray's node is gone, with which every process ends."""
        self._launcher.check()
        self.ray.supervise()
        self.controller.supervise()
