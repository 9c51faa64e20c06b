"""The fleet's settings, and the roles' settings made from them.

Knows nothing of processes; values are checked here once. What a role checks of its own settings is left to the role.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...attention_workers.config import MAX_NUM_QUEUED_REQS, AttentionConfig
from ...expert_workers.config import BackendSetting, ExpertConfig
from ...gateway.access.access_settings import AccessSettings
from ...gateway.config import GatewayConfig
from ...gateway.engine.failover_settings import FailoverOptions
from ...membership.security import WireSettings
from ...settings.reader import option, within
from ..controller.budget import Size
from ..controller.placement_settings import PlacingSettings
from ..controller.stragglers import SlowSettings

CONTROLLER_SEAT = "controller"


@dataclass(frozen=True)
class FleetConfig(WireSettings, SlowSettings, PlacingSettings, FailoverOptions, AccessSettings):
    """Configuration of one fleet."""

    model: Path = option(help="checkpoint directory")
    shared_model: Path | None = option(
        None, "a second directory with the checkpoint, such as a network mount: read where --model lacks a file"
    )
    port: int = option(8000, "port of the API; 0 takes any free one")
    admin_host: str = option("127.0.0.1", "address of metrics and status")
    admin_port: int = option(0, "port of metrics and status; 0 takes any free one")
    controller_port: int = option(0, "port of the controller; 0 takes any free one")
    attention_workers: int = option(1, "number of attention workers")
    expert_shards: int = option(2, "number of expert shards")
    replicas: float = option(
        1.0, "copies of each expert, every one on another shard; 1.25 is a second copy of a quarter of them"
    )
    memory_gib: float | None = option(
        None,
        "memory for experts of each shard, GiB, lost shards' experts included; all there is, shared out, if not given",
    )
    device: Literal["auto", "cpu", "cuda"] = option("auto", "where the workers compute: auto or cpu")
    backend: BackendSetting = option("auto", "how experts are computed")
    dtype: Literal["bfloat16", "float32"] = option("bfloat16", "dtype of activations, cache and frames")
    threads: int | None = option(None, "threads of each worker; if not given the cores are shared out")
    spin_us: int | None = option(
        None,
        "microseconds that workers look for work before they sleep; if not given, as the threads leave processors to spare",
    )
    pin: bool | None = option(
        None, "expert shards keep to processors of their own; the choice where NUMA nodes are several"
    )
    served_model_name: tuple[str, ...] = option((), "names of the model in the API; the directory's if not given")
    max_model_len: int | None = option(None, "most tokens of prompt and answer; the checkpoint's limit if not given")
    max_num_seqs: int = option(64, "most sequences in one forward step")
    max_num_queued_reqs: int | None = option(None, MAX_NUM_QUEUED_REQS)
    max_num_batched_tokens: int = option(512, "most tokens in one forward step")
    step_target_ms: float = option(
        100.0,
        "milliseconds that a step with answers and new prompts may take, or twice a step of answers alone if that is longer; "
        "prompts are read in smaller chunks to keep to it",
    )
    max_micro_batches: int = option(1, "forward steps under way at once; 2 hides a remote shard's latency")
    cache_gib: float | None = option(None, "latent cache of an attention worker, GiB; the worker's choice if not given")
    prefix_caching: bool = option(True, "prompts that begin alike share the latents of whole pages of 256 tokens")
    pair_transport: Literal["none", "gloo"] = option(
        "none", "how large rows travel between machines: none (all over gRPC) or gloo"
    )
    pair_min_kib: int = option(256, "rows from this size on go by --pair-transport, KiB")
    layer_deadline_s: float = option(10.0, "seconds that one layer's experts may take, retries and all")
    lost_expert_wait_s: float = option(
        120.0,
        "seconds that a layer waits for an expert which no live shard holds, before its requests end with an error",
    )
    keep_alive_s: float = option(15.0, "seconds of silence after which a stream gets a comment line")
    drain_s: float = option(30.0, "seconds that running requests may take after SIGTERM")

    def __post_init__(self) -> None:
        self.check_wire()
        within("attention_workers", self.attention_workers, 1, 4096)
        within("expert_shards", self.expert_shards, 1, 4096)
        within("replicas", self.replicas, 1, self.expert_shards)
        if self.memory_gib is not None:
            within("memory_gib", self.memory_gib, 0.001, 1 << 20)
        self.check_slow()
        self.check_placing()
        within("drain_s", self.drain_s, 0, 86_400)
        if self.threads is not None:
            within("threads", self.threads, 1, 1024)
        if self.spin_us is not None:
            within("spin_us", self.spin_us, 0, 1_000_000)
        for name in ("port", "admin_port", "controller_port"):
            within(name, getattr(self, name), 0, 65535)
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
        model, shared_model = self.model_folders
        return ExpertConfig(
            model=model,
            shared_model=shared_model,
            seat=seat,
            controller=controller,
            host=host,
            threads=threads,
            spin_us=spin_us,
            cpus=cpus,
            dtype=self.dtype,
            backend=self.backend,
            memory_gib=self.memory_gib,
            drain_s=self.drain_s,
            pair_transport=self.pair_transport,
            pair_min_kib=self.pair_min_kib,
            tls_dir=self.tls_dir,
            cluster_token=self.cluster_token,
        )

    def attention(self, seat: str, controller: str, host: str, threads: int, spin_us: int = 0) -> AttentionConfig:
        model, shared_model = self.model_folders
        return AttentionConfig(
            model=model,
            shared_model=shared_model,
            seat=seat,
            controller=controller,
            host=host,
            threads=threads,
            spin_us=spin_us,
            dtype=self.dtype,
            max_model_len=self.max_model_len,
            max_num_seqs=self.max_num_seqs,
            max_num_queued_reqs=self.max_num_queued_reqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            step_target_ms=self.step_target_ms,
            max_micro_batches=self.max_micro_batches,
            cache_gib=self.cache_gib,
            prefix_caching=self.prefix_caching,
            layer_deadline_s=self.layer_deadline_s,
            lost_expert_wait_s=self.lost_expert_wait_s,
            drain_s=self.drain_s,
            pair_transport=self.pair_transport,
            pair_min_kib=self.pair_min_kib,
            tls_dir=self.tls_dir,
            cluster_token=self.cluster_token,
        )

    def gateway(self, controller: str, port: int, admin_port: int) -> GatewayConfig:
        return GatewayConfig(
            model=self.model,
            seat="gateway-0",
            controller=controller,
            host=self.host,
            port=port,
            admin_host=self.admin_host,
            admin_port=admin_port,
            served_model_name=self.served_model_name,
            max_model_len=self.max_model_len,
            api_key=self.api_key,
            api_key_file=self.api_key_file,
            open=self.open,
            keep_alive_s=self.keep_alive_s,
            worker_wait_s=self.worker_wait_s,
            on_inexact=self.on_inexact,
            max_worker_deaths=self.max_worker_deaths,
            drain_s=self.drain_s,
            tls_dir=self.tls_dir,
            cluster_token=self.cluster_token,
        )
