"""The gateway's settings.

Knows nothing of workers' settings; values are checked here once and never changed afterwards.
"""

from dataclasses import dataclass
from pathlib import Path

from ..membership.security import WireSettings
from ..settings.reader import check_address, check_host, check_seat, option, within
from .access.access_settings import AccessSettings
from .engine.failover_settings import FailoverOptions


@dataclass(frozen=True)
class GatewayConfig(WireSettings, FailoverOptions, AccessSettings):
    model: Path = option(help="directory of the checkpoint (tokenizer, template and config are read, no weights)")
    controller: str = option(help="host:port of the controller")
    port: int = option(8000, "port of the API; 0 takes any free one")
    admin_host: str = option("127.0.0.1", "address of metrics and status")
    admin_port: int = option(0, "port of metrics and status; 0 takes any free one")
    seat: str = option("", "this gateway's seat, gateway-N; a number is drawn if not given")
    served_model_name: tuple[str, ...] = option(
        (), "names under which clients ask for the model; by default the directory as given and its base name"
    )
    max_model_len: int | None = option(None, "most tokens of prompt and answer; by default what workers allow")
    max_body_mib: int = option(32, "largest request body in MiB")
    max_choices: int = option(128, "most sequences one request may ask for (prompts × n)")
    keep_alive_s: float = option(15.0, "seconds of silence after which a stream gets a comment line")
    first_chunk_s: float = option(0.5, "seconds a stream waits for the first token before its headers go out")
    drain_s: float = option(30.0, "seconds that running requests may take after SIGTERM")
    retry_after_s: int = option(
        2, "the Retry-After of answers 503, in seconds; the least of it where the workers have too many requests"
    )
    access_log: bool = option(False, "one log line a request")

    def __post_init__(self) -> None:
        self.check_wire()
        if not self.model.is_dir():
            raise ValueError(f"model: {self.model} is not a directory")
        self.check_access()
        check_host("admin_host", self.admin_host)
        check_address("controller", self.controller)
        if self.seat:
            check_seat(self.seat, "gateway")
        within("port", self.port, 0, 65535)
        within("admin_port", self.admin_port, 0, 65535)
        within("max_body_mib", self.max_body_mib, 1, 1024)
        within("max_choices", self.max_choices, 1, 1024)
        within("keep_alive_s", self.keep_alive_s, 0.05, 3600)
        within("first_chunk_s", self.first_chunk_s, 0, 60)
        self.check_failover()
        within("drain_s", self.drain_s, 0, 86400)
        within("retry_after_s", self.retry_after_s, 1, 3600)
        if self.max_model_len is not None:
            within("max_model_len", self.max_model_len, 2, 1 << 30)
        if any(not name.strip() for name in self.served_model_name):
            raise ValueError("served_model_name: an empty name")

    @property
    def model_names(self) -> tuple[str, ...]:
        """The names clients may use; the first is the main one."""
        return self.served_model_name or tuple(dict.fromkeys((str(self.model), self.model.resolve().name)))
