"""What one attention worker is told at start; knows nothing of the fleet's other members."""

from dataclasses import dataclass

from ..membership.worker_settings import ContextSettings, WorkerSettings
from ..settings.option import option
from ..settings.reader import check_address, check_seat

_QUEUED = 256


@dataclass(frozen=True, kw_only=True)
class AttentionSettings(ContextSettings):
    """Options that a whole fleet passes on to its attention workers."""

    max_num_seqs: int = option(
        64, "most sequences in one forward step", group="limits", range=(1, 1 << 16), common=True
    )
    max_num_queued_reqs: int | None = option(
        None,
        "most requests that an attention worker has at once, running and waiting, before it refuses more; each of n choices counts; "
        f"if not given {_QUEUED} beside those of one forward step; 0: any number",
        group="limits",
        range=(0, 1 << 20),
    )
    max_num_batched_tokens: int = option(512, "most tokens in one forward step", group="limits", range=(1, 1 << 20))
    step_target_ms: float = option(
        100.0,
        "milliseconds that a step with answers and new prompts may take, or twice a step of answers alone if that is longer; "
        "prompts are read in smaller chunks to keep to it",
        group="limits",
        range=(1, 3_600_000),
    )
    max_micro_batches: int = option(
        1, "forward steps under way at once; 2 hides a remote shard's latency", group="limits", range=(1, 8)
    )
    cache_gib: float | None = option(
        None,
        "latent cache of an attention worker, GiB; if not given 1 or one full-length sequence, if larger",
        group="memory",
        range=(0.001, 1 << 14),
        common=True,
    )
    prefix_caching: bool = option(
        True, "prompts that begin alike share the latents of whole pages of 256 tokens", group="memory"
    )
    layer_deadline_s: float = option(
        10.0, "seconds that one layer's experts may take, retries and all", group="failure", range=(0.001, 3600)
    )
    lost_expert_wait_s: float = option(
        120.0,
        "seconds that a layer waits for an expert which no live shard holds, before its requests end with an error",
        group="failure",
        range=(0, 86_400),
    )


@dataclass(frozen=True, kw_only=True)
class AttentionConfig(AttentionSettings, WorkerSettings):
    """Configuration of one attention worker."""

    seat: str = option("attention-0", "the seat this process takes", group="network")
    controller: str | None = option(
        None, "HOST:PORT of the controller; without one --shards names the expert shards", group="network", common=True
    )
    shards: tuple[str, ...] = option(
        (), "HOST:PORT of every expert shard, when there is no controller", group="network"
    )
    local_lanes: bool = option(True, "reach expert shards of this machine through shared memory", group="network")
    tcp_lanes: bool = option(
        True, "send lanes' frames over TCP beside gRPC, where the shard takes them", group="network"
    )

    def check(self) -> None:
        super().check()
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
