"""A fleet's controller as a plain process, for machines without Ray: ``controller.py MODEL HOST NUM_SHARDS REPLICAS``.

Knows nothing of the machines. It says where it listens, as every role does.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

from expertfleet.checkpoint.files import CheckpointFiles
from expertfleet.cluster.commands.config import FleetConfig
from expertfleet.cluster.commands.resource_plan import make_plan
from expertfleet.cluster.controller.controller import Controller
from expertfleet.cluster.controller.desired_state import DesiredState
from expertfleet.membership.security import WireSecurity, secure


async def serve(model: str, host: str, num_shards: str, replicas: str) -> None:
    config = FleetConfig(model=Path(model), expert_shards=int(num_shards), replicas=float(replicas))
    with CheckpointFiles.open(config.model) as checkpoint:
        shape = make_plan(config, checkpoint, cores=1, nodes={}).shape
    tls_dir = os.environ.get("EXPERTFLEET_TLS_DIR")
    secure(WireSecurity(Path(tls_dir) if tls_dir else None, os.environ["EXPERTFLEET_CLUSTER_TOKEN"]))
    controller = Controller(shape, DesiredState.first(1, config.expert_shards, config.replicas), host)
    await controller.start()
    print(f"listening {controller.address}", flush=True)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await ended.wait()
    await controller.stop()


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:]))
