"""The fleet's settings, and the roles' settings made from them.

Knows nothing of processes; values are checked here once. What a role checks of its own settings is left to the role.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...attention_workers.config import AttentionConfig, AttentionSettings
from ...expert_workers.config import ExpertConfig, ExpertSettings
from ...gateway.config import GatewayConfig, GatewaySettings
from ...membership.security import WireSettings
from ...membership.worker_settings import WeightSettings, WorkerSettings
from ...settings.option import derive, option, redefine, within
from ..controller.budget import Size
from ..controller.placement_settings import PlacingSettings
from ..controller.stragglers import SlowSettings

CONTROLLER_SEAT = "controller"
# Options of a role alone: `serve` has no flag for them, and a role that it starts has its own default.
_PAIRS = ("pair_transport", "pair_min_kib")
EXPERT_ALONE = (
    *("experts", "node", "tcp_lanes", "lane_port", "device", "max_frame_mib", "max_queued_frames", "slice_ms"),
    *_PAIRS,
)
ATTENTION_ALONE = ("shards", "node", "local_lanes", "tcp_lanes", "max_frame_mib", *_PAIRS)
GATEWAY_ALONE = ("max_body_mib", "max_choices", "first_chunk_s", "retry_after_s", "access_log")


@dataclass(frozen=True)
class FleetConfig(
    SlowSettings,
    PlacingSettings,
    AttentionSettings,
    ExpertSettings,
    GatewaySettings,
    WireSettings,
    WeightSettings,
):
    """Configuration of one fleet."""

    controller_port: int = option(0, "port of the controller; 0 takes any free one", group="network", range=(0, 65535))
    attention_workers: int = option(1, "number of attention workers", range=(1, 4096), common=True)
    expert_shards: int = option(2, "number of expert shards", range=(1, 4096), common=True)
    replicas: float = option(
        1.0,
        "copies of each expert, every one on another shard; 1.25 is a second copy of a quarter of them",
        range=(1, 4096),
        common=True,
    )
    memory_gib: float | None = redefine(
        ExpertSettings,
        "memory_gib",
        None,
        "memory for experts of each shard, GiB, lost shards' experts included; all there is, shared out, if not given",
    )
    device: Literal["auto", "cpu", "cuda"] = option("auto", "where the workers compute: auto or cpu", common=True)
    threads: int | None = redefine(
        WorkerSettings, "threads", None, "threads of each worker; if not given the cores are shared out"
    )
    spin_us: int | None = redefine(
        WorkerSettings,
        "spin_us",
        None,
        "microseconds that workers look for work before they sleep; if not given, as the threads leave processors to spare",
    )
    pin: bool | None = option(
        None, "expert shards keep to processors of their own; the choice where NUMA nodes are several"
    )

    def check(self) -> None:
        super().check()
        within("replicas", self.replicas, 1, self.expert_shards)
        if self.port and self.port == self.admin_port:
            raise ValueError(f"admin_port: {self.admin_port} is the API's port as well; choose another")
        if self.device == "cuda":
            raise ValueError(
                "device: cuda is not there for a whole fleet, attention workers compute on the CPU; choose auto or cpu"
            )
        if any("," in key for key in self.api_key):
            raise ValueError("api_key: a key must not contain a comma")

    @property
    def attention_seats(self) -> tuple[str, ...]:
        return tuple(f"attention-{index}" for index in range(self.attention_workers))

    @property
    def expert_seats(self) -> tuple[str, ...]:
        return tuple(f"expert-{index}" for index in range(self.expert_shards))

    @property
    def size(self) -> Size:
        return Size(self.attention_workers, self.expert_shards, self.replicas)

    @property
    def model_folders(self) -> tuple[Path, Path | None]:
        """--model and --shared-model as any process of this machine finds them."""
        return self.model.resolve(), self.shared_model.resolve() if self.shared_model is not None else None

    def check_roles(self) -> None:
        """Builds every role's settings once, so that a value no role accepts is refused before anything starts."""
        self.expert("expert-0", "127.0.0.1:1", "127.0.0.1", self.threads or 1)
        self.attention("attention-0", "127.0.0.1:1", "127.0.0.1", self.threads or 1)
        self.gateway("127.0.0.1:1", self.port, self.admin_port)

    def expert(
        self, seat: str, controller: str, host: str, threads: int, cpus: str = "", spin_us: int = 0
    ) -> ExpertConfig:
        given = self._worker(seat, controller, host, threads, spin_us)
        return derive(ExpertConfig, self, EXPERT_ALONE, cpus=cpus, **given)

    def attention(self, seat: str, controller: str, host: str, threads: int, spin_us: int = 0) -> AttentionConfig:
        given = self._worker(seat, controller, host, threads, spin_us)
        return derive(AttentionConfig, self, ATTENTION_ALONE, **given)

    def gateway(self, controller: str, port: int, admin_port: int) -> GatewayConfig:
        given = {"seat": "gateway-0", "controller": controller, "port": port, "admin_port": admin_port}
        return derive(GatewayConfig, self, GATEWAY_ALONE, **given)

    def _worker(self, seat: str, controller: str, host: str, threads: int, spin_us: int) -> dict[str, Any]:
        """What every worker has of its own; it listens on any free port."""
        model, shared_model = self.model_folders
        own = {"model": model, "shared_model": shared_model, "seat": seat, "controller": controller, "host": host}
        return {**own, "port": 0, "threads": threads, "spin_us": spin_us}
