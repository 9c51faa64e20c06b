"""What one attention worker is told at start; knows nothing of the fleet's other members."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..membership.security import WireSettings
from ..settings.reader import check_address, check_host, check_seat, option, within

_QUEUED = 256
MAX_NUM_QUEUED_REQS = (
    "most requests that an attention worker has at once, running and waiting, before it refuses more; each of n choices counts; "
    f"if not given {_QUEUED} beside those of one forward step; 0: any number"
)


@dataclass(frozen=True)
class AttentionConfig(WireSettings):
    """Configuration of one attention worker."""

    model: Path = option(help="checkpoint directory")
    shared_model: Path | None = option(
        None, "a second directory with the checkpoint, such as a network mount: read where --model lacks a file"
    )
    seat: str = option("attention-0", "the seat this process takes")
    controller: str | None = option(None, "HOST:PORT of the controller; without one --shards names the expert shards")
    shards: tuple[str, ...] = option((), "HOST:PORT of every expert shard, when there is no controller")
    host: str = option("127.0.0.1", "address to listen on")
    port: int = option(0, "port to listen on; 0 takes any free one")
    node: str = option("", "name of the machine in status; the host name if empty")
    dtype: Literal["bfloat16", "float32"] = option("bfloat16", "dtype of activations, cache and frames")
    threads: int = option(1, "threads of the engine")
    spin_us: int = option(
        0, "microseconds to look for work before sleeping: shortens lanes, and takes a processor that must be to spare"
    )
    max_model_len: int | None = option(None, "most positions of a sequence; the checkpoint's own limit if not given")
    max_num_seqs: int = option(64, "most sequences in one forward step")
    max_num_queued_reqs: int | None = option(None, MAX_NUM_QUEUED_REQS)
    max_num_batched_tokens: int = option(512, "most tokens in one forward step")
    step_target_ms: float = option(
        100.0,
        "milliseconds that a step with answers and new prompts may take, or twice a step of answers alone if that is longer; "
        "prompts are read in smaller chunks to keep to it",
    )
    max_micro_batches: int = option(1, "forward steps under way at once; 2 hides a remote shard's latency")
    cache_gib: float | None = option(None, "latent cache, GiB; if not given 1 or one full-length sequence, if larger")
    prefix_caching: bool = option(True, "prompts that begin alike share the latents of whole pages of 256 tokens")
    layer_deadline_s: float = option(10.0, "seconds that one layer's experts may take, retries and all")
    lost_expert_wait_s: float = option(
        120.0,
        "seconds that a layer waits for an expert which no live shard holds, before its requests end with an error",
    )
    local_lanes: bool = option(True, "reach expert shards of this machine through shared memory")
    tcp_lanes: bool = option(True, "send lanes' frames over TCP beside gRPC, where the shard takes them")
    pair_transport: Literal["none", "gloo", "nccl"] = option(
        "none", "how large rows travel between machines: none (as all frames), gloo or nccl; both ends must name it"
    )
    pair_min_kib: int = option(256, "rows from this size on go by --pair-transport, KiB")
    max_frame_mib: int = option(64, "largest frame accepted, MiB")
    drain_s: float = option(30.0, "seconds that running sequences may take after SIGTERM")

    def __post_init__(self) -> None:
        self.check_wire()
        within("threads", self.threads, 1, 1024)
        within("spin_us", self.spin_us, 0, 1_000_000)
        check_host("host", self.host)
        within("port", self.port, 0, 65535)
        within("max_model_len", self.max_model_len if self.max_model_len is not None else 1, 1, 1 << 24)
        within("max_num_seqs", self.max_num_seqs, 1, 1 << 16)
        within("max_num_queued_reqs", self.max_num_queued_reqs or 0, 0, 1 << 20)
        within("max_num_batched_tokens", self.max_num_batched_tokens, 1, 1 << 20)
        within("step_target_ms", self.step_target_ms, 1, 3_600_000)
        within("max_micro_batches", self.max_micro_batches, 1, 8)
        within("cache_gib", self.cache_gib if self.cache_gib is not None else 1, 1e-3, 1 << 14)
        within("layer_deadline_s", self.layer_deadline_s, 0.001, 3600)
        within("lost_expert_wait_s", self.lost_expert_wait_s, 0, 86_400)
        within("max_frame_mib", self.max_frame_mib, 1, 1024)
        within("drain_s", self.drain_s, 0, 86_400)
        within("pair_min_kib", self.pair_min_kib, 0, 1 << 20)
        if self.pair_transport != "none" and self.tls_dir is not None:
            raise ValueError(f"pair_transport: {self.pair_transport} does not encrypt; it cannot go with tls_dir")
        for address in self.shards:
            check_address("shards", address)
        if self.controller is not None:
            check_address("controller", self.controller)
            check_seat(self.seat, "attention", 4095)
        if self.controller is None and not self.shards:
            raise ValueError("controller: none given, and no --shards either; one of the two names the expert shards")
        if self.controller is not None and self.shards:
            raise ValueError(f"shards: {', '.join(self.shards)} are the controller's to name; give one of the two")

    @property
    def max_open(self) -> int | None:
        """Sequences at once, running and waiting; None: any number."""
        given = self.max_num_queued_reqs
        return self.max_num_seqs + _QUEUED if given is None else given or None

    @property
    def max_frame_bytes(self) -> int:
        return self.max_frame_mib << 20

    @property
    def pair_min_bytes(self) -> int:
        return self.pair_min_kib << 10
