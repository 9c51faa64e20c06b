"""Options that several roles have: where the model lies, how a worker listens and computes, and how rows travel between workers.

Knows nothing of what a role does with them. A whole fleet inherits all but ``WorkerSettings``, as its workers differ in those.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..settings.option import Settings, option
from ..settings.reader import check_host
from .security import WireSettings


@dataclass(frozen=True)
class ModelSettings(Settings):
    """Options of every role."""

    model: Path = option(help="directory of the checkpoint", group="model", common=True)


@dataclass(frozen=True, kw_only=True)
class WeightSettings(ModelSettings):
    """Options of a process that reads more of the checkpoint than a gateway does."""

    shared_model: Path | None = option(
        None,
        "a second directory with the checkpoint, such as a network mount: read where --model lacks a file",
        group="model",
    )
    dtype: Literal["bfloat16", "float32"] = option(
        "bfloat16", "dtype of activations, cache and frames", group="model", common=True
    )


@dataclass(frozen=True, kw_only=True)
class ContextSettings(Settings):
    """Options of a process that limits how long a sequence is."""

    max_model_len: int | None = option(
        None,
        "most tokens of prompt and answer; if not given the checkpoint's own limit, in a gateway what its workers allow",
        group="limits",
        range=(2, 1 << 24),
        common=True,
    )


@dataclass(frozen=True, kw_only=True)
class DrainSettings(Settings):
    """Options of a process that serves."""

    drain_s: float = option(
        30.0, "seconds that running work may take after SIGTERM", group="failure", range=(0, 86_400), common=True
    )


@dataclass(frozen=True, kw_only=True)
class PairSettings(Settings):
    """Options of both ends of a pair."""

    pair_transport: Literal["none", "nccl"] = option(
        "none",
        "how large rows travel between machines: none (as all frames) or nccl; both ends must name it",
        group="network",
    )
    pair_min_kib: int = option(
        256, "rows from this size on go by --pair-transport, KiB", group="network", range=(0, 1 << 20)
    )

    @property
    def pair_min_bytes(self) -> int:
        return self.pair_min_kib << 10


@dataclass(frozen=True, kw_only=True)
class WorkerSettings(WeightSettings, DrainSettings, PairSettings, WireSettings):
    """Options of an attention worker and of an expert shard."""

    host: str = option("127.0.0.1", "address to listen on", group="network", common=True)
    port: int = option(0, "port to listen on; 0 takes any free one", group="network", range=(0, 65535), common=True)
    node: str = option("", "name of the machine in status; the host name if empty", group="network")
    threads: int = option(1, "threads that compute", range=(1, 1024), common=True)
    spin_us: int = option(
        0,
        "microseconds to look for work before sleeping: shortens lanes, and takes a processor that must be to spare",
        range=(0, 1_000_000),
    )
    max_frame_mib: int = option(64, "largest frame accepted, MiB", group="limits", range=(1, 1024))

    @property
    def max_frame_bytes(self) -> int:
        return self.max_frame_mib << 20

    def check(self) -> None:
        super().check()
        check_host("host", self.host)
        if self.pair_transport != "none" and self.tls_dir is not None:
            raise ValueError(f"pair_transport: {self.pair_transport} does not encrypt; it cannot go with tls_dir")
