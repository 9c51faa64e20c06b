"""The gRPC channel to a controller or an attention worker, what its server must allow, and how a server takes its port.

Knows nothing of the messages. A server may be away for minutes and come back at the same address, so the channel tries
again every second at most, and pings tell a vanished machine from a quiet one.
"""

import errno

import grpc

from ..proto.address import join_address
from . import security

_CHANNEL_OPTIONS = [
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", -1),
]

SERVER_OPTIONS = [
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.max_receive_message_length", 64 << 20),
]


def open_channel(address: str) -> grpc.aio.Channel:
    """To be called on the event loop that will use it."""
    return security.open_channel(address, _CHANNEL_OPTIONS)


async def listen(server: grpc.aio.Server, host: str, port: int) -> str:
    """Starts the server at ``host:port`` (0: any free port); its address.

    Raises OSError when the port is taken, ValueError when strangers could reach it and nothing would keep them out.
    """
    try:
        bound = security.add_port(server, host, port)
    except RuntimeError as error:
        taken = f"{join_address(host, port)} cannot be bound, another process may use it; choose another port"
        raise OSError(errno.EADDRINUSE, taken) from error
    await server.start()
    return join_address(host, bound)
