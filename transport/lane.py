"""The name and limits of the lane stream, shared by both of its ends.

Knows nothing of frames. Messages are raw bytes: no protobuf between a tensor and the socket.
"""

import grpc

SERVICE = "expertfleet.v1.ExpertLane"
METHOD = "Stream"
PATH = f"/{SERVICE}/{METHOD}"
# gRPC's own limit lies above ours, so that a frame a little too large still gets a typed answer.
_SLACK_BYTES = 1 << 20


def channel_options(max_frame_bytes: int) -> list[tuple[str, int]]:
    """gRPC options for a lane's client."""
    return [
        ("grpc.max_receive_message_length", max_frame_bytes + _SLACK_BYTES),
        ("grpc.max_send_message_length", -1),
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 5_000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        ("grpc.enable_http_proxy", 0),
        # Lanes of several workers in one process must not share a connection by accident.
        ("grpc.use_local_subchannel_pool", 1),
    ]


def server_options(max_frame_bytes: int) -> list[tuple[str, int]]:
    """gRPC options for a shard's server."""
    return [
        ("grpc.max_receive_message_length", max_frame_bytes + _SLACK_BYTES),
        ("grpc.max_send_message_length", -1),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.so_reuseport", 0),
    ]


def stream_handler(behaviour: object) -> grpc.GenericRpcHandler:
    """A generic handler that serves ``behaviour(requests, context)`` as the lane method on raw bytes."""
    method = grpc.stream_stream_rpc_method_handler(behaviour, request_deserializer=None, response_serializer=None)
    return grpc.method_handlers_generic_handler(SERVICE, {METHOD: method})
