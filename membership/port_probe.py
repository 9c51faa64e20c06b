"""Whether anything listens at an address, and what kind of thing does. Knows nothing of fleets."""

import asyncio
import socket
import ssl

from ..proto.address import split_address

_REACH_S = 5.0
_LISTEN_S = 0.5
_SPEAK_S = 1.0
_LOOK_S = 0.3


class UnknownHostError(OSError):
    """The host of an address has no address that can be looked up. ``may_pass``: the one who looks them up does not answer now."""

    def __init__(self, host: str, reason: str, may_pass: bool) -> None:
        super().__init__(f"the name {host!r} cannot be looked up ({reason})")
        self.may_pass = may_pass


def look_up(host: str) -> list[tuple[socket.AddressFamily, str]]:
    """The addresses of ``host``. Raises UnknownHostError."""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        may_pass = isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise UnknownHostError(host, reason, may_pass) from error
    return [(family, str(place[0])) for family, _, _, _, place in found]


def is_own(host: str) -> bool:
    """Whether this machine has the address, or one of the name's. Raises UnknownHostError."""
    for family, address in look_up(host):
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.bind((address, 0))
            return True
        except OSError:
            continue
    return False


def why_unreachable(address: str, timeout_s: float = _REACH_S) -> str:
    """Why nothing listens at HOST:PORT; empty if something does."""
    try:
        _connect(address, timeout_s).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def listens(address: str) -> bool:
    """False only where a connection to HOST:PORT is refused; where nobody can tell in time the answer is yes."""
    try:
        _connect(address, _LISTEN_S).close()
    except TimeoutError:
        return True
    except OSError:
        return False
    return True


async def is_nobody_at(address: str) -> bool:
    """A refused connection says so; silence says nothing."""
    try:
        async with asyncio.timeout(_LOOK_S):
            _, writer = await asyncio.open_connection(*split_address(address))
        writer.close()
    except ConnectionRefusedError:
        return True
    except (OSError, ValueError):
        return False
    return False


def speaks_tls(address: str) -> bool:
    """Whether whoever listens there answers in TLS, whatever its certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return not why_no_handshake(address, context)


def why_no_handshake(address: str, context: ssl.SSLContext, name: str | None = None) -> str:
    """Why there is no TLS with whoever listens there, who should show a certificate of ``name``; empty where there is."""
    context.set_alpn_protocols(["h2"])
    try:
        with _connect(address, _SPEAK_S) as connected, context.wrap_socket(connected, server_hostname=name) as secured:
            secured.settimeout(_SPEAK_S)
            secured.recv(1)  # NOTE: who refuses our certificate says so only after the handshake
    except TimeoutError:
        return ""
    except ssl.SSLCertVerificationError as error:
        return f"its certificate is not accepted ({error.verify_message.rstrip('.')})"
    except ssl.SSLError as error:
        reason = (error.reason or str(error)).replace("_", " ").lower()
        return "" if name is None and "alert" in reason else reason
    except OSError as error:
        return error.strerror or str(error)
    return ""


def speaks_http(address: str) -> bool:
    try:
        with _connect(address, _SPEAK_S) as connected:
            connected.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return connected.recv(5) == b"HTTP/"
    except OSError:
        return False


def _connect(address: str, timeout_s: float) -> socket.socket:
    return socket.create_connection(split_address(address), timeout=timeout_s)
