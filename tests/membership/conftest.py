import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest

from expertfleet.membership.channel import SERVER_OPTIONS
from expertfleet.proto.errors import FleetError
from expertfleet.proto.generated import membership_pb2 as pb
from expertfleet.proto.generated import membership_pb2_grpc as rpc


class FakeController(rpc.MembershipServicer):
    """Records what it is told; ``refusal`` is raised from Register, ``epochs`` are streamed to every watcher."""

    def __init__(self) -> None:
        self.registrations: list[pb.RegisterRequest] = []
        self.reports: list[pb.ReportRequest] = []
        self.known: set[int] = set()
        self.refusal: FleetError | None = None
        self.epochs: list[pb.Epoch] = []
        self.orders: list[pb.Order] = []
        self.followed: list[int] = []
        self.watchers = 0
        self.incarnation = 0
        self.port = 0
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        rpc.add_MembershipServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def stop(self) -> None:
        assert self._server is not None
        await self._server.stop(None)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def Register(self, request: pb.RegisterRequest, context: grpc.aio.ServicerContext) -> pb.RegisterReply:
        self.registrations.append(request)
        if self.refusal is not None:
            await context.abort(self.refusal.status, self.refusal.details)
        lease_id = len(self.registrations)
        self.known.add(lease_id)
        return pb.RegisterReply(lease_id=lease_id, lease_s=1.0, incarnation=self.incarnation)

    async def Report(self, request: pb.ReportRequest, context: grpc.aio.ServicerContext) -> pb.ReportReply:
        self.reports.append(request)
        return pb.ReportReply(known=request.lease_id in self.known)

    async def Follow(self, request: pb.FollowRequest, context: grpc.aio.ServicerContext) -> AsyncIterator[pb.Order]:
        self.followed.append(request.lease_id)
        for order in self.orders if request.lease_id in self.known else ():
            yield order
        while request.lease_id in self.known:
            await asyncio.sleep(0.02)

    async def Watch(self, request: pb.WatchRequest, context: grpc.aio.ServicerContext) -> AsyncIterator[pb.Epoch]:
        self.watchers += 1
        for epoch in self.epochs:
            yield epoch
        await asyncio.sleep(3600)


@pytest.fixture
def controller() -> FakeController:
    return FakeController()
