"""A worker's server that needs no torch: it takes its seat and counts instead of computing."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from typing import Any

import grpc

from expertfleet.checkpoint.files import CheckpointFiles
from expertfleet.membership.epoch import NO_EPOCH, Epoch, ExpertSet
from expertfleet.membership.lease_client import LeaseClient
from expertfleet.membership.security import make_server, secure
from expertfleet.membership.watch import EpochWatch
from expertfleet.proto.generated import generate_pb2, generate_pb2_grpc, membership_pb2

TOKEN_S = 0.05


class CountingServer(generate_pb2_grpc.AttentionWorkerServicer):
    """Any role: registers, reports ready at once, and as an attention worker streams the ids 100, 101, …"""

    def __init__(self, config: Any, offer: str) -> None:
        self.failure = ""
        self.config, self.tokens = config, 0
        self.state = "loading" if config.seat.startswith("expert") else "ready"
        secure(config.wire)
        self.held, self.epoch = ExpertSet.empty(), NO_EPOCH
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def start(self) -> None:
        if "FAKE_FAULT" in os.environ and self.config.seat == "expert-1":
            raise OSError(os.environ["FAKE_FAULT"])
        asyncio.run_coroutine_threadsafe(self.serve(), self.loop).result(30)

    async def serve(self) -> None:
        self.server = make_server(())
        generate_pb2_grpc.add_AttentionWorkerServicer_to_server(self, self.server)
        self.port = self.server.add_insecure_port(f"{self.config.host}:0")
        await self.server.start()
        fingerprint = CheckpointFiles.open(self.config.model).fingerprint
        keeper = LeaseClient(self.config.controller, self.config.seat)
        await keeper.register(self.address(), os.getpid(), "node", fingerprint, self.config.dtype)
        self.keeping = [
            asyncio.create_task(keeper.keep(self.report, interval_s=0.2)),
            asyncio.create_task(keeper.follow(self.on_order)),
            asyncio.create_task(EpochWatch(self.config.controller, self.config.seat).run(self.on_epoch)),
        ]

    def on_order(self, order: membership_pb2.Order) -> None:
        if order.leave:
            for task in self.keeping:
                task.cancel()
        elif order.HasField("hold"):
            self.held = ExpertSet.from_proto(order.hold)
            self.state = "ready"

    def on_epoch(self, epoch: Epoch) -> None:
        self.epoch = epoch.id

    def report(self) -> membership_pb2.WorkerReport:
        return membership_pb2.WorkerReport(
            seat=self.config.seat, state=self.state, held=self.held.to_proto(), numerics="fake", tokens=self.tokens,
            bytes_loaded=1000, bytes_total=1000, pid=os.getpid(), epoch=self.epoch.to_proto(),
        )  # fmt: skip

    async def Describe(
        self, request: generate_pb2.DescribeWorkerRequest, context: grpc.aio.ServicerContext
    ) -> membership_pb2.WorkerReport:
        return self.report()

    async def Generate(
        self, request: generate_pb2.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[generate_pb2.GenerateReply]:
        for index in range(request.max_tokens):
            await asyncio.sleep(TOKEN_S)
            self.tokens += 1
            last = index + 1 == request.max_tokens
            first = {"seat": self.config.seat, "numerics": "fake"} if index == 0 else {}
            yield generate_pb2.GenerateReply(token_ids=[100 + index % 50], finish_reason="length" * last, **first)

    def address(self) -> str:
        return f"{self.config.host}:{self.port}"


ExpertServer = AttentionServer = CountingServer
