"""The gRPC channel to a controller, and what its server must allow.

Knows nothing of the messages. A controller may be away for minutes and come back at the same address, so the channel
tries again every second at most, and pings tell a vanished machine from a quiet one.
"""

import grpc

_CHANNEL_OPTIONS = [
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.max_receive_message_length", 64 << 20),
]

SERVER_OPTIONS = [
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.max_receive_message_length", 64 << 20),
]


def open_channel(address: str) -> grpc.aio.Channel:
    """To be called on the event loop that will use it."""
    return grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)
