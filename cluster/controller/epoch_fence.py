"""Raises the oldest epoch that expert shards still serve, once nobody uses an older one any more.

Knows nothing of seats or of how epochs come about. ``due`` says which epoch is safe: one that every attention worker
has acknowledged in a report, and in any case one that was published longer than ``BOUND_S`` ago; ``raise_all`` tells the
shards. A shard that cannot be reached is asked again next time.
"""

import asyncio
from collections.abc import Iterable

import grpc

from ...membership.channel import open_channel
from ...membership.epoch import NO_EPOCH, EpochId
from ...proto.generated import expert_pb2, expert_pb2_grpc

BOUND_S = 30.0
# Frames that left with the epoch before an acknowledgement are answered within this time.
GRACE_S = 2.0
_TIMEOUT_S = 2.0


class Fence:
    def __init__(self) -> None:
        self._published: dict[EpochId, float] = {}
        self._acknowledged: dict[EpochId, float] = {}

    def publish(self, epoch: EpochId, now: float) -> None:
        self._published[epoch] = now

    def due(self, in_use: Iterable[EpochId], now: float) -> EpochId:
        """The newest epoch that may become the minimum; ``in_use`` are the epochs attention workers report."""
        oldest = min(in_use, default=NO_EPOCH)
        safe = NO_EPOCH
        for epoch, since in self._published.items():
            if epoch <= oldest:
                self._acknowledged.setdefault(epoch, now)
            acknowledged = now - self._acknowledged.get(epoch, now) >= GRACE_S
            if acknowledged or now - since >= BOUND_S:
                safe = max(safe, epoch)
        for passed in [epoch for epoch in self._published if epoch < safe]:
            del self._published[passed]
            self._acknowledged.pop(passed, None)
        return safe


async def raise_all(addresses: Iterable[str], epoch: EpochId) -> list[str]:
    """The addresses that acknowledged."""
    wanted = list(addresses)
    done = await asyncio.gather(*(_raise_one(address, epoch) for address in wanted))
    return [address for address, acknowledged in zip(wanted, done, strict=True) if acknowledged]


async def _raise_one(address: str, epoch: EpochId) -> bool:
    request = expert_pb2.RaiseMinEpochRequest(min_epoch=epoch.to_proto())
    async with open_channel(address) as channel:
        try:
            await expert_pb2_grpc.ExpertShardStub(channel).RaiseMinEpoch(request, timeout=_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            return False
    return True
