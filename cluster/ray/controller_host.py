"""The program of the controller's process: it serves the controller and starts worker actors on the nodes.

The program knows nothing of its supervisor, which starts it again when it dies. 1. The controller serves at its port; 2. the process joins
Ray as a driver; 3. once a step, ``NodeActors`` looks after the worker actors, which outlive this process.
"""

import logging
import sys
from pathlib import Path

from ...membership.security import secure
from ..controller.controller_thread import ControllerThread
from .controller_process import ControllerSpec


def host(spec: ControllerSpec, ray_file: Path) -> None:
    """Never returns. Raises OSError where the controller's port is taken, ValueError for a kept file that is not ours."""
    secure(spec.wire)
    thread = ControllerThread(spec.make_controller())
    from .driver import join_ray, look_after  # NOTE: imports ray, which is slow; the controller is heard before
    from .node_actors import NodeActors

    actors = NodeActors(thread, spec.gather_s, spec.forget_s, spec.offers_file)
    join_ray(ray_file)
    look_after(actors)


def main() -> int:
    """The reason of its end is the last line of the log."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        host(ControllerSpec.load(Path(sys.argv[1])), Path(sys.argv[2]))
    except (OSError, ValueError) as error:
        print(" ".join(str(error).split()), flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
