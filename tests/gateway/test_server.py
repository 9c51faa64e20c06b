"""Where a gateway listens, and where it says that it is."""

import asyncio
import socket
from typing import Any

import httpx
import pytest

from expertfleet.gateway.config import GatewayConfig
from expertfleet.gateway.server import GatewayServer
from expertfleet.proto.address import is_loopback


def port_of(rig: Any) -> int:
    return int(rig.gateway.service.address[1])


@pytest.mark.parametrize(
    ("host", "reached_at"),
    [
        ("0.0.0.0", ["127.0.0.1"]),
        ("0", ["127.0.0.1"]),
        ("::", ["[::1]", "127.0.0.1"]),
        ("::0", ["[::1]", "127.0.0.1"]),
        ("::1", ["[::1]"]),
        ("localhost", ["localhost"]),
        ("::ffff:127.0.0.1", ["[::ffff:127.0.0.1]"]),
    ],
)
def test_it_answers_on_every_address_that_it_is_told(
    host: str, reached_at: list[str], model_dir: Any, scripts: Any
) -> None:
    rig = scripts.Rig(model_dir, host=host, admin_host=host, open=not is_loopback(host))
    try:
        admin_port = rig.gateway.service.admin_address[1]
        for name in reached_at:
            health = httpx.get(f"http://{name}:{port_of(rig)}/health", trust_env=False)
            assert health.json() == {"status": "alive", "admin": f"http://{name}:{admin_port}"}
            assert httpx.get(f"http://{name}:{admin_port}/status", trust_env=False).status_code == 200
    finally:
        rig.close()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "0", "::0"])
def test_the_fleet_hears_of_an_address_that_it_can_reach(host: str, model_dir: Any, scripts: Any) -> None:
    """It is asked whether anybody is there when its stream breaks; nobody is at every address."""
    rig = scripts.Rig(model_dir, host=host, open=True)
    try:
        scripts.until(lambda: bool(rig.controller.registered), 10.0)
        assert rig.controller.registered[-1].address == f"127.0.0.1:{port_of(rig)}"
    finally:
        rig.close()


def test_a_fleet_of_ipv6_hears_of_one_in_brackets(model_dir: Any, scripts: Any) -> None:
    rig = scripts.Rig(model_dir, host="::1")
    try:
        scripts.until(lambda: bool(rig.controller.registered), 10.0)
        assert rig.controller.registered[-1].address == f"[::1]:{port_of(rig)}"
    finally:
        rig.close()


def test_a_port_that_is_taken_is_named_with_its_address(model_dir: Any) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
        port = taken.getsockname()[1]
        server = GatewayServer(GatewayConfig(model=model_dir, controller="127.0.0.1:1", host="::1", port=port))
        with pytest.raises(ValueError, match=rf"^port: cannot listen on \[::1\]:{port}: .*--port"):
            asyncio.run(server.start())
