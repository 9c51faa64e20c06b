"""What threads without an event loop ask of a controller. Knows nothing of who asks."""

from types import TracebackType
from typing import Any, Self

import grpc

from ..proto.errors import from_call
from ..proto.generated import membership_pb2 as pb
from ..proto.generated import membership_pb2_grpc as rpc
from . import security

_TIMEOUT_S = 2.0


class MembershipClient:
    def __init__(self, controller: str) -> None:
        self._channel = security.open_blocking_channel(controller, [("grpc.enable_http_proxy", 0)])
        self._stub = rpc.MembershipStub(self._channel)

    def status(self, seat: str = "") -> pb.FleetStatus:
        """Of the whole fleet, or of one worker. Raises FleetError while the controller does not answer."""
        status: pb.FleetStatus = self._call(self._stub.Status, pb.StatusRequest(seat=seat))
        return status

    def drain(self, seat: str, offer: str = "") -> None:
        """Has ``seat`` leave, if it is this ``offer``'s. Raises FleetError: BAD_REQUEST where that cannot be, another code while nobody answers."""
        self._call(self._stub.Scale, pb.ScaleRequest(drain=seat, drain_offer=offer))

    @staticmethod
    def _call(method: Any, request: Any) -> Any:
        try:
            return method(request, timeout=_TIMEOUT_S)
        except grpc.RpcError as error:
            raise from_call(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()
