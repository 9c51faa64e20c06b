import asyncio

import grpc

from expertfleet.cluster.controller.epoch_fence import BOUND_S, GRACE_S, Fence, raise_all
from expertfleet.membership.epoch import NO_EPOCH, EpochId
from expertfleet.proto.generated import expert_pb2, expert_pb2_grpc

ONE, TWO, THREE = EpochId(5, 1), EpochId(5, 2), EpochId(5, 3)


def fence() -> Fence:
    made = Fence()
    for moment, epoch in enumerate((ONE, TWO, THREE)):
        made.publish(epoch, float(moment))
    return made


def test_nothing_is_due_before_somebody_acknowledged() -> None:
    assert fence().due([ONE, NO_EPOCH], 3.0) == NO_EPOCH
    assert fence().due([], 3.0) == NO_EPOCH


def test_what_the_slowest_acknowledged_is_due_after_a_grace() -> None:
    made = fence()
    assert made.due([THREE, TWO], 3.0) == NO_EPOCH
    assert made.due([THREE, TWO], 3.0 + GRACE_S) == TWO
    assert made.due([THREE, THREE], 3.1 + GRACE_S) == TWO
    assert made.due([THREE, THREE], 3.1 + 2 * GRACE_S) == THREE


def test_a_silent_user_holds_it_up_only_so_long() -> None:
    made = fence()
    assert made.due([ONE], 1.0 + BOUND_S) == TWO
    assert made.due([ONE], 2.0 + BOUND_S) == THREE


def test_shards_are_told_and_an_absent_one_is_not_counted() -> None:
    class Shard(expert_pb2_grpc.ExpertShardServicer):
        heard: tuple[EpochId, ...] = ()

        async def RaiseMinEpoch(
            self, request: expert_pb2.RaiseMinEpochRequest, context: grpc.aio.ServicerContext
        ) -> expert_pb2.RaiseMinEpochReply:
            self.heard = (*self.heard, EpochId.from_proto(request.min_epoch))
            return expert_pb2.RaiseMinEpochReply(min_epoch=request.min_epoch)

    async def scenario() -> None:
        shard, server = Shard(), grpc.aio.server()
        expert_pb2_grpc.add_ExpertShardServicer_to_server(shard, server)
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        assert await raise_all([address, "127.0.0.1:9"], TWO) == [address]
        assert shard.heard == (TWO,)
        await server.stop(None)

    asyncio.run(scenario())
