"""What expert shards say of themselves: their reports, all at once, over channels that stay open.

Knows nothing of lanes and of what is made of the figures.
"""

import asyncio
import sys
import time
from collections.abc import Sequence

import grpc

from expertfleet.membership.channel import open_channel
from expertfleet.proto.generated import expert_pb2, expert_pb2_grpc, membership_pb2
from expertfleet.transport.io_thread import IoThread

_CALL_S = 30.0
_AGAIN_S = 0.2


class ShardReports:
    """One of each shard, in the order of ``addresses``; the calls run on ``io``."""

    def __init__(self, io: IoThread, addresses: Sequence[str]) -> None:
        self._io = io
        self._channels = io.submit(self._open(addresses))

    def take(self) -> list[membership_pb2.WorkerReport]:
        return self._io.submit(self._take())

    def ready(self, within_s: float) -> list[membership_pb2.WorkerReport]:
        """Once all shards have loaded; ends the program if one fails or takes longer."""
        end = time.monotonic() + within_s
        while True:
            reports = self.take()
            if all(report.state == "ready" for report in reports):
                return reports
            told = "; ".join(f"{report.seat} {report.state} {report.error}".strip() for report in reports)
            if any(report.state == "failed" for report in reports) or time.monotonic() > end:
                sys.exit(f"not all shards are ready: {told}")
            time.sleep(_AGAIN_S)

    def compute_seconds(self) -> list[float]:
        """What each has spent on products of experts since it started."""
        return [report.metrics["compute_seconds_total"] for report in self.take()]

    def close(self) -> None:
        self._io.submit(self._close())

    async def _open(self, addresses: Sequence[str]) -> list[grpc.aio.Channel]:
        return [open_channel(address) for address in addresses]

    async def _take(self) -> list[membership_pb2.WorkerReport]:
        calls = (
            expert_pb2_grpc.ExpertShardStub(channel).Describe(
                expert_pb2.DescribeRequest(), wait_for_ready=True, timeout=_CALL_S
            )
            for channel in self._channels
        )
        return list(await asyncio.gather(*calls))

    async def _close(self) -> None:
        for channel in self._channels:
            await channel.close()
