"""Shards named on the command line are asked until they are ready, and must serve the worker's checkpoint."""

import asyncio
from pathlib import Path

import grpc
import pytest

from expertfleet.attention_workers.static_shards import describe_shards
from expertfleet.checkpoint.tensors import Checkpoint
from expertfleet.membership.epoch import ExpertSet
from expertfleet.proto.errors import Code, FleetError
from expertfleet.proto.generated import expert_pb2_grpc, membership_pb2


class Shard(expert_pb2_grpc.ExpertShardServicer):
    """Fails the first call."""

    def __init__(self, report: membership_pb2.WorkerReport) -> None:
        self.report = report
        self.calls = 0

    async def Describe(self, request, context) -> membership_pb2.WorkerReport:
        self.calls += 1
        if self.calls == 1:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "restarting")
        return self.report


async def describe(shard: Shard, checkpoint: Checkpoint):
    server = grpc.aio.server()
    expert_pb2_grpc.add_ExpertShardServicer_to_server(shard, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        return await asyncio.wait_for(describe_shards((f"127.0.0.1:{port}",), checkpoint, "bfloat16"), 10)
    finally:
        await server.stop(None)


def make_report(checkpoint: Checkpoint, fingerprint: str) -> membership_pb2.WorkerReport:
    config = checkpoint.config
    held = ExpertSet.full(config.num_layers, config.num_experts, config.num_dense_layers)
    return membership_pb2.WorkerReport(
        seat="expert-0", state="ready", fingerprint=fingerprint, numerics="n", held=held.to_proto()
    )


def test_a_call_that_fails_is_made_again(small_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(small_checkpoint)
    epoch = asyncio.run(describe(Shard(make_report(checkpoint, checkpoint.fingerprint)), checkpoint))
    assert epoch.complete


def test_a_shard_of_another_checkpoint_is_refused(small_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(small_checkpoint)
    with pytest.raises(FleetError, match=r"expert-0 at 127\.0\.0\.1") as caught:
        asyncio.run(describe(Shard(make_report(checkpoint, "cd" * 32)), checkpoint))
    assert caught.value.code is Code.FOREIGN_CHECKPOINT
