"""Whether anything listens at an address. Knows nothing of what."""

import socket

from ..proto.address import split_address

_REACH_S = 5.0
_LISTEN_S = 0.5


def why_unreachable(address: str) -> str:
    """Why nothing listens at HOST:PORT; empty if something does."""
    try:
        _connect(address, _REACH_S)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def listens(address: str) -> bool:
    """False only where a connection to HOST:PORT is refused; where nobody can tell in time the answer is yes."""
    try:
        _connect(address, _LISTEN_S)
    except TimeoutError:
        return True
    except OSError:
        return False
    return True


def _connect(address: str, timeout_s: float) -> None:
    socket.create_connection(split_address(address), timeout=timeout_s).close()
