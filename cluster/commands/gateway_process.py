"""The gateway's process below the guard, and the one completion by which ``serve`` proves that the whole way works.

This file knows nothing else of HTTP bodies.
"""

import contextlib
import json
import random
import socket
from collections.abc import Mapping
from typing import Any

import httpx

from ...gateway.access.keys import all_keys
from ...gateway.config import GatewayConfig
from ...proto.address import family_of, is_every_address, join_address
from ...settings.flags import to_flags
from ...settings.reader import ENV_PREFIX
from ..errors import ClusterError
from ..ray.launcher import Launcher
from ..ray.supervised_process import SupervisedProcess

_TRIAL_S = 30.0
_DRAWN_PORTS = range(15_000, 32_000)  # below those that Linux gives to outgoing connections
_DRAWS = 100


class GatewayProcess(SupervisedProcess):
    def __init__(self, config: GatewayConfig, launcher: Launcher, environ: Mapping[str, str]) -> None:
        self._config = config
        environment = gateway_environment(environ, config)
        super().__init__("gateway", "expertfleet.gateway", to_flags(config), environment, launcher)

    @property
    def url(self) -> str:
        """The API as this machine reaches it."""
        host = self._config.host
        if is_every_address(host):
            host = "::1" if ":" in host else "127.0.0.1"
        return http_url(host, self._config.port)

    def why_not_ready(self) -> str:
        """Empty when ``/ready`` says yes."""
        try:
            with httpx.Client(trust_env=False, timeout=2.0) as client:
                reply = client.get(f"{self.url}/ready")
            return "" if reply.status_code == 200 else str(reply.json().get("missing"))
        except (httpx.TransportError, ValueError) as error:
            return str(error) or type(error).__name__

    def answers(self) -> bool:
        """One token over HTTP; False when it should be tried again, ClusterError when it cannot work."""
        keys = all_keys(self._config.api_key, self._config.api_key_file)
        headers = {"Authorization": f"Bearer {keys[0]}"} if keys else {}
        body: dict[str, Any] = {"model": self._config.model_names[0], "prompt": "a", "max_tokens": 1, "temperature": 0}
        try:
            with httpx.Client(trust_env=False, timeout=_TRIAL_S) as client:
                reply = client.post(f"{self.url}/v1/completions", json=body, headers=headers)
        except httpx.TransportError:
            return False
        if reply.status_code in (429, 503):
            return False
        if reply.status_code != 200:
            raise ClusterError(
                f"the first completion was answered with {reply.status_code}: {error_message(reply.text)}"
            )
        return True


def gateway_environment(environ: Mapping[str, str], config: GatewayConfig) -> dict[str, str]:
    """``environ`` without our own and Ray's settings; secrets travel here, where no process list shows them."""
    kept = {name: value for name, value in environ.items() if not name.startswith((ENV_PREFIX, "RAY_"))}
    given = {"API_KEY": ",".join(config.api_key), "CLUSTER_TOKEN": config.cluster_token}
    return kept | {f"{ENV_PREFIX}{name}": value for name, value in given.items() if value}


def http_url(host: str, port: int) -> str:
    return f"http://{join_address(host, port)}"


def claim_port(host: str, port: int, flag: str) -> int:
    """``port`` if it can be bound; for 0 a free one that no outgoing connection takes before it is used."""
    if port:
        _probe(host, port, flag)
        return port
    for drawn in random.SystemRandom().sample(_DRAWN_PORTS, _DRAWS):
        with contextlib.suppress(ClusterError):
            _probe(host, drawn, flag)
            return drawn
    _probe(host, 0, flag)  # says what is wrong with the address, if it is that
    raise ClusterError(f"{flag}: none of {_DRAWS} ports drawn from {_DRAWN_PORTS.start} on is free; give one")


def _probe(host: str, port: int, flag: str) -> None:
    try:
        with socket.socket(family_of(host), socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        what = f"{flag} {port}: {join_address(host, port)} cannot be bound ({error.strerror or error})"
        raise ClusterError(f"{what}; stop what uses it or choose another {flag}") from error


def error_message(text: str) -> str:
    """The message inside an error body of the API, or the body."""
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return text.strip()[:400]
