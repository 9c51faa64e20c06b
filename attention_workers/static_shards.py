"""An epoch without a controller: the shards named on the command line, as they describe themselves.

Knows nothing of leases; who is named here is asked until it is ready, whatever becomes of a single call,
and never replaced.
"""

import asyncio
import logging

import grpc

from ..checkpoint.tensors import Checkpoint
from ..membership.channel import open_channel
from ..membership.epoch import Epoch, EpochId, ExpertSet, Member
from ..proto.errors import Code, FleetError, from_call
from ..proto.generated import expert_pb2, expert_pb2_grpc, membership_pb2

logger = logging.getLogger(__name__)
_AGAIN_S = 0.2
_CALL_TIMEOUT_S = 5.0


async def describe_shards(addresses: tuple[str, ...], checkpoint: Checkpoint, dtype: str) -> Epoch:
    """Waits until every shard is ready; the epoch that they form. Raises FleetError FOREIGN_CHECKPOINT."""
    reports = await asyncio.gather(*(_ready_report(address) for address in addresses))
    for report, address in zip(reports, addresses, strict=True):
        if report.fingerprint != checkpoint.fingerprint:
            raise FleetError(
                Code.FOREIGN_CHECKPOINT,
                f"{report.seat} at {address} serves checkpoint {report.fingerprint[:16]}, "
                f"this worker {checkpoint.fingerprint[:16]}",
            )
    members = tuple(
        Member(report.seat, address, report.numerics, ExpertSet.from_proto(report.held))
        for address, report in zip(addresses, reports, strict=True)
    )
    config = checkpoint.config
    everything = ExpertSet.full(config.num_layers, config.num_experts, config.num_dense_layers)
    held = ExpertSet.empty(config.num_layers, config.num_experts).mask
    for member in members:
        held = held | member.held.mask
    complete = bool((held >= everything.mask).all())
    return Epoch(EpochId(0, 1), checkpoint.fingerprint, dtype, members, (), complete)


async def _ready_report(address: str) -> membership_pb2.WorkerReport:
    async with open_channel(address) as channel:
        stub = expert_pb2_grpc.ExpertShardStub(channel)
        while True:
            try:
                report: membership_pb2.WorkerReport = await stub.Describe(
                    expert_pb2.DescribeRequest(), wait_for_ready=True, timeout=_CALL_TIMEOUT_S
                )
            except grpc.aio.AioRpcError as error:
                logger.info("%s: %s", address, from_call(error))
            else:
                if report.state == "ready":
                    return report
            await asyncio.sleep(_AGAIN_S)
