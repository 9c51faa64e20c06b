import dataclasses
import socket
from pathlib import Path

import pytest

from expertfleet.cluster.commands.gateway_process import (
    GatewayProcess,
    claim_port,
    error_message,
    gateway_environment,
    http_url,
)
from expertfleet.cluster.errors import ClusterError
from expertfleet.cluster.ray.launcher import Launcher
from expertfleet.gateway.config import GatewayConfig


def test_a_taken_port_is_named_with_its_remedy() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            ClusterError, match=f"--port {port}: 127.0.0.1:{port} cannot be bound .* choose another --port"
        ):
            claim_port("127.0.0.1", port, "--port")
    assert claim_port("127.0.0.1", port, "--port") == port


def test_port_zero_is_a_free_one_that_no_outgoing_connection_takes() -> None:
    drawn = {claim_port("127.0.0.1", 0, "--port") for _ in range(20)}
    assert len(drawn) > 1
    lowest = 32768
    if (file := Path("/proc/sys/net/ipv4/ip_local_port_range")).exists():
        lowest = int(file.read_text().split()[0])
    assert max(drawn) < lowest
    for port in drawn:
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", port))


def test_an_address_that_is_not_ours_is_named() -> None:
    with pytest.raises(ClusterError, match=r"--port 8000: 192\.0\.2\.77:8000 cannot be bound"):
        claim_port("192.0.2.77", 8000, "--port")
    with pytest.raises(ClusterError, match=r"--port 0: 192\.0\.2\.77:0 cannot be bound"):
        claim_port("192.0.2.77", 0, "--port")


def test_the_gateway_sees_neither_our_settings_nor_rays_but_its_secrets(tmp_path: Path) -> None:
    environ = {"EXPERTFLEET_EXPERT_SHARDS": "3", "RAY_AUTH_TOKEN": "x", "PATH": "/bin"}
    bare = GatewayConfig(tmp_path, "127.0.0.1:1")
    assert gateway_environment(environ, bare) == {"PATH": "/bin"}
    keyed = dataclasses.replace(bare, api_key=("k1", "k2"), cluster_token="sixteen and more")
    secrets = {"EXPERTFLEET_API_KEY": "k1,k2", "EXPERTFLEET_CLUSTER_TOKEN": "sixteen and more"}
    assert gateway_environment(environ, keyed) == {"PATH": "/bin", **secrets}


def test_urls_and_error_bodies_for_people() -> None:
    assert http_url("::1", 80) == "http://[::1]:80"
    assert error_message('{"error": {"message": "no such model"}}') == "no such model"
    assert error_message(" oh no ") == "oh no"


@pytest.mark.parametrize(
    ("host", "url"),
    [
        *((host, "http://127.0.0.1:80") for host in ("0.0.0.0", "0")),
        *((host, "http://[::1]:80") for host in ("::", "::0")),
        ("127.0.0.2", "http://127.0.0.2:80"),
        ("localhost", "http://localhost:80"),
        ("fd00::7", "http://[fd00::7]:80"),
    ],
)
def test_a_gateway_at_every_address_is_asked_on_loopback(host: str, url: str, tmp_path: Path) -> None:
    config = GatewayConfig(model=tmp_path, controller="h:1", host=host, port=80, open=True)
    assert GatewayProcess(config, Launcher(tmp_path), {}).url == url
