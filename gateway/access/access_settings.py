"""Where the API listens, and who is served there.

Knows nothing of HTTP, nor of what the admin port allows (``admin.py``).
"""

from dataclasses import dataclass
from pathlib import Path

from ...proto.address import is_loopback
from ...settings.option import Settings, option
from ...settings.reader import check_host
from .keys import all_keys


@dataclass(frozen=True, kw_only=True)
class AccessSettings(Settings):
    """The settings of this, which a gateway and a whole fleet have."""

    host: str = option(
        "127.0.0.1",
        "address of the API; 0.0.0.0 is every one of IPv4, :: every one of both; wants a key, or --open",
        group="network",
        common=True,
    )
    api_key: tuple[str, ...] = option(
        (), "keys of which clients must present one for /v1", group="network", secret=True
    )
    api_key_file: Path | None = option(
        None,
        "file of keys as --api-key gives them, separated by commas or lines; read again when it changes",
        group="network",
        common=True,
    )
    open: bool = option(
        False, "without keys: whoever reaches --host is served, even where strangers do", group="network"
    )

    def check(self) -> None:
        super().check()
        check_host("host", self.host)
        if any(not key.strip() for key in self.api_key):
            raise ValueError("api_key: an empty key")
        has_keys = bool(all_keys(self.api_key, self.api_key_file))
        if self.open and has_keys:
            raise ValueError("open: true serves whoever comes, but api_key or api_key_file asks for a key; choose one")
        if not (self.open or has_keys or is_loopback(self.host)):
            raise ValueError(
                f"host: {self.host} can be reached by strangers, and no key keeps them out; "
                "give --api-key-file or --api-key, or --open to serve whoever comes"
            )
