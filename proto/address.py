"""HOST:PORT made and taken apart. An IPv6 host stands in brackets there, as in a URL, and without them everywhere else.

Knows nothing of who listens.
"""

import socket


def join_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_address(address: str) -> tuple[str, int]:
    """Raises ValueError for a port that is no number."""
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def own_host(towards: str) -> str:
    """The address of this machine from which packets to ``towards``, HOST:PORT, would leave. Raises OSError."""
    host, port = split_address(towards)
    family, kind, _, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(target)
        return str(probe.getsockname()[0])
