"""Asks a controller for the fleet's status from a thread without an event loop. Knows nothing of who asks."""

from types import TracebackType
from typing import Self

import grpc

from ..membership import wire
from ..proto.generated import membership_pb2 as pb
from ..proto.generated import membership_pb2_grpc as rpc

_TIMEOUT_S = 2.0


class MembershipClient:
    def __init__(self, controller: str) -> None:
        self._channel = wire.open_blocking_channel(controller, [("grpc.enable_http_proxy", 0)])

    def status(self) -> pb.FleetStatus | None:
        """None while the controller does not answer."""
        try:
            reply: pb.FleetStatus = rpc.MembershipStub(self._channel).Status(pb.StatusRequest(), timeout=_TIMEOUT_S)
        except grpc.RpcError:
            return None
        return reply

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()
