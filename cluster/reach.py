"""Whether anything listens at an address. Knows nothing of what."""

import socket

_REACH_S = 5.0


def why_unreachable(address: str) -> str:
    """Why nothing listens at HOST:PORT; empty if something does."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_S).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""
