"""What this project sets in Ray, and why: environment, command lines and start hook of a cluster's nodes.

Knows nothing of processes. Ray's defaults end a fleet a minute after its head died, give a third of the memory to an
object store that nobody uses, kill the largest worker under memory pressure, and have every worker run with the lowest priority but
for four; each setting here undoes one of these.
"""

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...settings.reader import ENV_PREFIX
from .offer import Offer

NAMESPACE = "expertfleet"
OBJECT_STORE_BYTES = 80 * 1024 * 1024
START_HOOK = f"{__name__}.adjust_start"
# Ray announces a coming change of a default between the lines of `serve` unless this is set.
QUIET_DRIVER = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
# NOTE: Ray replaces 127.0.0.1 by the machine's address, except where this is 0 (it is meant for laptops, and bars other nodes).
_LOOPBACK = "127.0.0.1"
_LOOPBACK_IS_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


@dataclass(frozen=True)
class RaySettings:
    """One node of a Ray cluster that nobody else is to join; as it stands, a head on loopback alone."""

    run_dir: Path
    threads: int = 1
    token: str = field(default_factory=lambda: secrets.token_hex(32))
    host: str = _LOOPBACK  # what others reach this node at; with the default there are none
    port: int = 0  # the head's; 0 takes any free one
    storage: Path | None = None  # what the head keeps, if that shall outlive ``run_dir``
    offer: Offer | None = None  # to workers, if the node takes any

    @property
    def gcs_storage(self) -> Path:
        return (self.storage or self.run_dir) / "gcs"

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """A node's."""
        return {**self.driver_environment(base), **self._node_environment()}

    def driver_environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """``base`` without what would configure Ray otherwise, plus this cluster's settings."""
        kept = {name: value for name, value in base.items() if not name.startswith(("RAY_", ENV_PREFIX))}
        return {
            **kept,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_gcs_rpc_server_reconnect_timeout_s": "3600",
            "RAY_USAGE_STATS_ENABLED": "0",
            **QUIET_DRIVER,
            **(_LOOPBACK_IS_LOOPBACK if self.host == _LOOPBACK else {}),
        }

    def _node_environment(self) -> dict[str, str]:
        return {
            "RAY_gcs_storage": "rocksdb",
            "RAY_gcs_storage_path": str(self.gcs_storage),
            "RAY_memory_monitor_refresh_ms": "0",
            "RAY_worker_niceness": "0",
            "RAY_worker_maximum_startup_concurrency": "4",
            "RAY_START_HOOK": START_HOOK,
            **thread_environment(self.threads),
        }

    def head_command(self, python: str) -> list[str]:
        own = {"--port": str(self.port), "--include-dashboard": "false", "--include-log-monitor": "false"}
        return [*self._start(python), "--head", "--no-monitor", *_flags(own)]

    def join_command(self, python: str, head: str) -> list[str]:
        """A node at a ``head`` HOST:PORT."""
        return [*self._start(python), *_flags({"--address": head})]

    def _start(self, python: str) -> list[str]:
        options = {
            "--node-ip-address": self.host,
            "--temp-dir": str(self.run_dir / "ray"),
            "--object-store-memory": str(OBJECT_STORE_BYTES),
            "--min-worker-port": "0",
            "--max-worker-port": "0",
            "--dashboard-agent-listen-port": "0",
            "--num-cpus": "0",
            "--num-gpus": "0",
            "--resources": json.dumps(self.offer.resources if self.offer is not None else {}),
        }
        return [python, "-m", "ray.scripts.scripts", "start", "--disable-usage-stats", *_flags(options)]


def _flags(options: Mapping[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in options.items()]


def token_from(cluster_token: str) -> str:
    """Ray's token in a fleet of several machines: whoever knows the fleet's own can make it."""
    return hashlib.sha256(f"ray {cluster_token}".encode()).hexdigest()


def thread_environment(threads: int) -> dict[str, str]:
    """Thread counts on purpose (Ray would set one silently), and waiting threads that sleep instead of spinning."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "0",
        "KMP_BLOCKTIME": "0",
    }


def adjust_start(ray_params: Any, head: bool) -> None:
    """Called inside ``ray start``: no client server, no dashboard process."""
    from ray._private.node import Node

    Node.start_api_server = lambda self, **_: None
    ray_params.ray_client_server_port = None
