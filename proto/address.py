"""HOST:PORT made and taken apart, and what kind of host it is. An IPv6 host stands in brackets there, as in a URL, and without them
everywhere else.

Knows nothing of who listens.
"""

import ipaddress
import socket

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def join_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_address(address: str) -> tuple[str, int]:
    """Raises ValueError for a port that is no number."""
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def addresses_of(host: str, flags: int = 0) -> list[Address]:
    """Those that ``host`` is or that its name stands for, those of IPv4 as such; none for a name that nobody knows."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=flags)
    except (OSError, UnicodeError):
        return []
    addresses = [ipaddress.ip_address(str(place[0])) for *_, place in found]
    return [getattr(address, "ipv4_mapped", None) or address for address in addresses]


def is_loopback(host: str) -> bool:
    """Whether ``host`` is reached from this machine alone. Looks names up."""
    found = addresses_of(host)
    return bool(found) and all(address.is_loopback for address in found)


def is_every_address(host: str) -> bool:
    """Whether a port is there at all addresses of the machine, however that is spelt: 0.0.0.0, ::, 0, ::0."""
    return any(address.is_unspecified for address in addresses_of(host, socket.AI_NUMERICHOST))


def family_of(host: str) -> socket.AddressFamily:
    """IPv6 for what has no address of IPv4. Raises OSError for a name that nobody knows."""
    try:
        found = {family for family, *_ in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except UnicodeError as error:
        raise OSError(f"{host!r} is no name: {error}") from error
    return socket.AF_INET if socket.AF_INET in found else socket.AF_INET6


def own_host(towards: str) -> str:
    """The address of this machine from which packets to ``towards``, HOST:PORT, would leave. Raises OSError."""
    host, port = split_address(towards)
    family, kind, _, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(target)
        return str(probe.getsockname()[0])
