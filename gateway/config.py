"""The gateway's settings.

Knows nothing of workers' settings; values are checked here once and never changed afterwards.
"""

from dataclasses import dataclass

from ..membership.security import WireSettings
from ..membership.worker_settings import ContextSettings, DrainSettings, ModelSettings
from ..settings.option import option
from ..settings.reader import check_address, check_host, check_seat
from .access.access_settings import AccessSettings
from .engine.failover_settings import FailoverOptions


@dataclass(frozen=True, kw_only=True)
class GatewaySettings(FailoverOptions, AccessSettings, ContextSettings, DrainSettings):
    """Options that a whole fleet passes on to its gateway."""

    port: int = option(8000, "port of the API; 0 takes any free one", group="network", range=(0, 65535), common=True)
    admin_host: str = option("127.0.0.1", "address of metrics and status", group="network")
    admin_port: int = option(0, "port of metrics and status; 0 takes any free one", group="network", range=(0, 65535))
    served_model_name: tuple[str, ...] = option(
        (),
        "names under which clients ask for the model; by default the directory as given and its base name",
        group="model",
        common=True,
    )
    keep_alive_s: float = option(
        15.0, "seconds of silence after which a stream gets a comment line", group="network", range=(0.05, 3600)
    )

    def check(self) -> None:
        super().check()
        check_host("admin_host", self.admin_host)
        if any(not name.strip() for name in self.served_model_name):
            raise ValueError("served_model_name: an empty name")


@dataclass(frozen=True)
class GatewayConfig(GatewaySettings, WireSettings, ModelSettings):
    """Configuration of one gateway, which reads tokenizer, template and configuration of the checkpoint, and no weights."""

    controller: str = option(help="host:port of the controller", group="network", common=True)
    seat: str = option("", "this gateway's seat, gateway-N; a number is drawn if not given", group="network")
    max_body_mib: int = option(32, "largest request body in MiB", group="limits", range=(1, 1024))
    max_choices: int = option(
        128, "most sequences one request may ask for (prompts × n)", group="limits", range=(1, 1024)
    )
    first_chunk_s: float = option(
        0.5, "seconds a stream waits for the first token before its headers go out", group="network", range=(0, 60)
    )
    retry_after_s: int = option(
        2,
        "the Retry-After of answers 503, in seconds; the least of it where the workers have too many requests",
        group="limits",
        range=(1, 3600),
    )
    access_log: bool = option(False, "one log line a request", group="network")

    def check(self) -> None:
        super().check()
        if not self.model.is_dir():
            raise ValueError(f"model: {self.model} is not a directory")
        check_address("controller", self.controller)
        if self.seat:
            check_seat(self.seat, "gateway")

    @property
    def model_names(self) -> tuple[str, ...]:
        """The names clients may use; the first is the main one."""
        return self.served_model_name or tuple(dict.fromkeys((str(self.model), self.model.resolve().name)))
