"""What one expert shard is told at start; knows nothing of the fleet's other members."""

import re
from dataclasses import dataclass
from typing import Literal

from ..membership.worker_settings import WorkerSettings
from ..settings.option import Settings, option
from ..settings.ranges import parse_ranges
from ..settings.reader import check_address, check_seat

BackendSetting = Literal["auto", "cpu-native", "reference", "triton"]
_DEVICE = "cpu|cuda(:[0-9]{1,3})?"


@dataclass(frozen=True, kw_only=True)
class ExpertSettings(Settings):
    """Options that a whole fleet passes on to its expert shards."""

    backend: BackendSetting = option("auto", "how experts are computed; on cuda by triton alone")
    memory_gib: float | None = option(
        None,
        "memory for experts, GiB, those of lost shards included: of the host on a CPU, of the GPU on a GPU; 90 % of what is free at "
        "the start if not given",
        group="memory",
        range=(0.001, 1 << 20),
        common=True,
    )


@dataclass(frozen=True, kw_only=True)
class ExpertConfig(ExpertSettings, WorkerSettings):
    """Configuration of one expert shard."""

    seat: str = option("expert-0", "the seat this process takes", group="network")
    controller: str | None = option(
        None, "HOST:PORT of the controller; without one the shard holds --experts", group="network", common=True
    )
    experts: str = option(
        "all", "experts of every MoE layer to hold when no controller assigns them: all, or 0-15,40", group="model"
    )
    tcp_lanes: bool = option(True, "take lanes' frames over TCP beside gRPC, which is faster", group="network")
    lane_port: int = option(
        0, "port that lanes' frames come to over TCP; 0 takes any free one", group="network", range=(0, 65535)
    )
    device: str = option("cpu", "where experts are computed: cpu, cuda or cuda:INDEX", pattern=_DEVICE, common=True)
    cpus: str = option(
        "", "processors to keep to, one for each thread, such as 0-15; memory comes from their NUMA node"
    )
    max_queued_frames: int = option(
        1024, "frames of one lane waiting before the shard answers OVERLOADED", group="limits", range=(1, 1 << 20)
    )
    slice_ms: float = option(
        20.0, "how long one GEMM may keep more urgent work waiting, ms", group="limits", range=(0.1, 10_000)
    )

    def check(self) -> None:
        super().check()
        if not re.fullmatch(_DEVICE, self.device):
            raise ValueError(f"device: {self.device!r} is neither cpu nor cuda nor cuda:INDEX")
        if self.backend == "triton" and self.device == "cpu":
            raise ValueError("backend: triton computes on a GPU; give --device cuda as well")
        if self.device != "cpu" and self.backend not in ("auto", "triton"):
            raise ValueError(f"backend: {self.backend} computes on the CPU, not on device {self.device!r}")
        if self.cpus and len(self.processors) < self.threads:
            raise ValueError(f"cpus: {self.cpus!r} are fewer than the {self.threads} threads")
        if self.controller is not None:
            check_address("controller", self.controller)
            check_seat(self.seat, "expert", 4095)
        if self.controller is not None and self.experts != "all":
            raise ValueError(f"experts: {self.experts!r} is the controller's to choose; give --experts or --controller")

    @property
    def processors(self) -> tuple[int, ...]:
        return parse_ranges("cpus", self.cpus) if self.cpus else ()


def parse_experts(text: str, num_experts: int) -> tuple[int, ...]:
    """``"all"`` or ``"0-15,40"`` as sorted expert ids below ``num_experts``."""
    if text == "all":
        return tuple(range(num_experts))
    chosen = parse_ranges("experts", text)
    if chosen[-1] >= num_experts:
        raise ValueError(f"experts: {text!r} names ids outside 0 to {num_experts - 1}")
    return chosen
