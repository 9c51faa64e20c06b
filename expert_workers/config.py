"""What one expert shard is told at start; knows nothing of the fleet's other members."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..membership.security import WireSettings
from ..settings.ranges import parse_ranges
from ..settings.reader import check_address, check_host, check_seat, option, within

BackendSetting = Literal["auto", "cpu-native", "reference", "triton"]


@dataclass(frozen=True)
class ExpertConfig(WireSettings):
    """Configuration of one expert shard."""

    model: Path = option(help="checkpoint directory; with a controller its safetensors files may be missing")
    shared_model: Path | None = option(
        None, "a second directory with the checkpoint, such as a network mount: read where --model lacks a file"
    )
    seat: str = option("expert-0", "the seat this process takes")
    controller: str | None = option(None, "HOST:PORT of the controller; without one the shard holds --experts")
    experts: str = option("all", "experts of every MoE layer to hold when no controller assigns them: all, or 0-15,40")
    host: str = option("127.0.0.1", "address to listen on")
    port: int = option(0, "port to listen on; 0 takes any free one")
    tcp_lanes: bool = option(True, "take lanes' frames over TCP beside gRPC, which is faster")
    lane_port: int = option(0, "port to listen on for that; 0 takes any free one")
    node: str = option("", "name of the machine in status; the host name if empty")
    dtype: Literal["bfloat16", "float32"] = option("bfloat16", "dtype of hidden rows")
    device: str = option("cpu", "where experts are computed: cpu, cuda or cuda:INDEX")
    backend: BackendSetting = option("auto", "how experts are computed; on cuda by triton alone")
    threads: int = option(1, "threads of the expert GEMM")
    spin_us: int = option(
        0, "microseconds to look for work before sleeping: shortens lanes, and takes a processor that must be to spare"
    )
    cpus: str = option(
        "", "processors to keep to, one for each thread, such as 0-15; memory comes from their NUMA node"
    )
    memory_gib: float | None = option(
        None,
        "memory for experts, GiB, those of lost shards included: of the host on a CPU, of the GPU on a GPU; 90 % of what is free at "
        "the start if not given",
    )
    pair_transport: Literal["none", "gloo", "nccl"] = option(
        "none", "how large rows travel between machines: none (as all frames), gloo or nccl; both ends must name it"
    )
    pair_min_kib: int = option(256, "rows from this size on go by --pair-transport, KiB")
    max_frame_mib: int = option(64, "largest frame accepted, MiB")
    max_queued_frames: int = option(1024, "frames of one lane waiting before the shard answers OVERLOADED")
    slice_ms: float = option(20.0, "how long one GEMM may keep more urgent work waiting")
    drain_s: float = option(30.0, "seconds that queued work may take after SIGTERM")

    def __post_init__(self) -> None:
        self.check_wire()
        if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", self.device):
            raise ValueError(f"device: {self.device!r} is neither cpu nor cuda nor cuda:INDEX")
        if self.backend == "triton" and self.device == "cpu":
            raise ValueError("backend: triton computes on a GPU; give --device cuda as well")
        if self.device != "cpu" and self.backend not in ("auto", "triton"):
            raise ValueError(f"backend: {self.backend} computes on the CPU, not on device {self.device!r}")
        within("threads", self.threads, 1, 1024)
        within("spin_us", self.spin_us, 0, 1_000_000)
        if self.cpus and len(self.processors) < self.threads:
            raise ValueError(f"cpus: {self.cpus!r} are fewer than the {self.threads} threads")
        if self.memory_gib is not None:
            within("memory_gib", self.memory_gib, 0.001, 1 << 20)
        check_host("host", self.host)
        within("port", self.port, 0, 65535)
        within("lane_port", self.lane_port, 0, 65535)
        within("max_frame_mib", self.max_frame_mib, 1, 1024)
        within("max_queued_frames", self.max_queued_frames, 1, 1 << 20)
        within("slice_ms", self.slice_ms, 0.1, 10_000)
        within("drain_s", self.drain_s, 0, 86_400)
        within("pair_min_kib", self.pair_min_kib, 0, 1 << 20)
        if self.pair_transport != "none" and self.tls_dir is not None:
            raise ValueError(f"pair_transport: {self.pair_transport} does not encrypt; it cannot go with tls_dir")
        if self.pair_transport == "nccl" and self.device == "cpu":
            raise ValueError("pair_transport: nccl sends from a GPU; give --device cuda as well")
        if self.controller is not None:
            check_address("controller", self.controller)
            check_seat(self.seat, "expert", 4095)
        if self.controller is not None and self.experts != "all":
            raise ValueError(f"experts: {self.experts!r} is the controller's to choose; give --experts or --controller")

    @property
    def processors(self) -> tuple[int, ...]:
        return parse_ranges("cpus", self.cpus) if self.cpus else ()

    @property
    def max_frame_bytes(self) -> int:
        return self.max_frame_mib << 20

    @property
    def pair_min_bytes(self) -> int:
        return self.pair_min_kib << 10


def parse_experts(text: str, num_experts: int) -> tuple[int, ...]:
    """``"all"`` or ``"0-15,40"`` as sorted expert ids below ``num_experts``."""
    if text == "all":
        return tuple(range(num_experts))
    chosen = parse_ranges("experts", text)
    if chosen[-1] >= num_experts:
        raise ValueError(f"experts: {text!r} names ids outside 0 to {num_experts - 1}")
    return chosen
