import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Self

import grpc
import pytest

from expertfleet.cluster.controller import Controller
from expertfleet.cluster.seats import FleetShape
from expertfleet.membership.channel import open_channel
from expertfleet.membership.epoch import Epoch, ExpertSet
from expertfleet.membership.seat import SeatKeeper
from expertfleet.membership.watch import EpochWatch
from expertfleet.proto.errors import Code, FleetError
from expertfleet.proto.generated import membership_pb2 as pb
from expertfleet.proto.generated import membership_pb2_grpc as rpc

SHAPE = FleetShape(4, 10, 1, "a" * 64, "bfloat16", attention_workers=1, expert_shards=3, replicas=1)


class Worker:
    """Sits on one seat, holds what it is assigned, and reports whatever ``state`` says."""

    def __init__(self, controller: str, seat: str, pid: int = 1) -> None:
        self.keeper = SeatKeeper(controller, seat)
        self.seat, self.pid, self.state = seat, pid, "loading"
        self.held = ExpertSet.empty()
        self.task: asyncio.Task[None] | None = None

    async def start(self) -> "Worker":
        reply = await self.keeper.register(f"h:{self.pid}", self.pid, "n", SHAPE.fingerprint, SHAPE.dtype)
        self.held = ExpertSet.from_proto(reply.assignment)
        self.task = asyncio.create_task(self.keeper.keep(self.report, interval_s=0.05))
        return self

    def report(self) -> pb.WorkerReport:
        return pb.WorkerReport(seat=self.seat, state=self.state, held=self.held.to_proto(), numerics="x", pid=self.pid)

    async def die(self) -> None:
        assert self.task is not None
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.keeper.close()


class Fleet:
    """A controller with a worker on every seat and one watcher."""

    def __init__(self, shape: FleetShape = SHAPE, lease_s: float = 0.6) -> None:
        self.shape, self.lease_s = shape, lease_s
        self.controller = Controller(shape, lease_s=lease_s)
        self.workers: dict[str, Worker] = {}
        self.epochs: list[Epoch] = []

    async def __aenter__(self) -> Self:
        await self.controller.start()
        self.watch = asyncio.create_task(EpochWatch(self.controller.address, "test").run(self.epochs.append))
        for seat in ["attention-0", *(f"expert-{i}" for i in range(self.shape.expert_shards))]:
            self.workers[seat] = await Worker(self.controller.address, seat).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.watch.cancel()
        for worker in self.workers.values():
            await worker.die()
        await asyncio.gather(self.watch, return_exceptions=True)
        await self.controller.stop()

    def all_ready(self) -> None:
        for worker in self.workers.values():
            worker.state = "ready"

    async def until(self, condition: Callable[[], bool], timeout_s: float = 8.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not condition():
                await asyncio.sleep(0.02)

    async def until_complete(self) -> Epoch:
        await self.until(lambda: bool(self.epochs) and self.epochs[-1].complete)
        return self.epochs[-1]

    async def status(self) -> pb.FleetStatus:
        async with open_channel(self.controller.address) as channel:
            reply: pb.FleetStatus = await rpc.MembershipStub(channel).Status(pb.StatusRequest())
            return reply


def in_loop(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(scenario())


def test_a_burst_of_ready_workers_makes_one_complete_epoch() -> None:
    async def scenario() -> None:
        async with Fleet() as fleet:
            assert not fleet.epochs
            fleet.all_ready()
            epoch = await fleet.until_complete()
            assert [member.seat for member in epoch.experts] == ["expert-0", "expert-1", "expert-2"]
            assert [member.seat for member in epoch.attention] == ["attention-0"]
            assert sum(member.held.count for member in epoch.experts) == 30
            assert (epoch.fingerprint, epoch.dtype) == (SHAPE.fingerprint, SHAPE.dtype)
            await asyncio.sleep(0.3)
            assert len(fleet.epochs) <= 2
            assert fleet.epochs[-1] == epoch

    in_loop(scenario)


def test_a_silent_shard_leaves_the_epoch_and_comes_back_in_a_newer_one() -> None:
    async def scenario() -> None:
        async with Fleet() as fleet:
            fleet.all_ready()
            whole = await fleet.until_complete()
            await fleet.workers["expert-1"].die()
            await fleet.until(lambda: not fleet.epochs[-1].complete)
            broken = fleet.epochs[-1]
            assert broken.id > whole.id
            assert [member.seat for member in broken.experts] == ["expert-0", "expert-2"]
            status = await fleet.status()
            assert {w.seat: w.state for w in status.workers}["expert-1"] == "lost"
            assert not status.ready
            assert status.missing == "10 of 30 experts have no live replica (expert-1 lost)"
            fleet.workers["expert-1"] = await Worker(fleet.controller.address, "expert-1", pid=2).start()
            fleet.workers["expert-1"].state = "ready"
            again = await fleet.until_complete()
            assert again.id > broken.id
            assert again.experts[1].address == "h:2"

    in_loop(scenario)


def test_a_draining_worker_leaves_the_epoch_at_once() -> None:
    async def scenario() -> None:
        async with Fleet(lease_s=30.0) as fleet:
            fleet.all_ready()
            await fleet.until_complete()
            fleet.workers["attention-0"].state = "draining"
            await fleet.until(lambda: fleet.epochs[-1].attention == (), timeout_s=2.0)
            assert not fleet.epochs[-1].complete

    in_loop(scenario)


def test_a_restarted_controller_waits_for_its_workers_before_it_speaks() -> None:
    async def scenario() -> None:
        async with Fleet(lease_s=6.0) as fleet:
            fleet.all_ready()
            before = await fleet.until_complete()
            held = {name: worker.held for name, worker in fleet.workers.items()}
            port = int(fleet.controller.address.rpartition(":")[2])
            await fleet.controller.stop()
            fleet.controller = Controller(SHAPE, port=port, lease_s=6.0)
            seen = len(fleet.epochs)
            await fleet.controller.start()
            await fleet.until(lambda: len(fleet.epochs) > seen)
            after = fleet.epochs[seen]
            assert after.complete
            assert after.id.incarnation > before.id.incarnation
            assert {member.seat: member.held for member in after.experts} == {
                name: held[name] for name in held if name.startswith("expert")
            }

    in_loop(scenario)


def test_a_foreign_checkpoint_is_refused_over_the_wire() -> None:
    async def scenario() -> None:
        async with Fleet() as fleet:
            keeper = SeatKeeper(fleet.controller.address, "expert-0")
            with pytest.raises(FleetError, match="has opened checkpoint bbbb") as caught:
                await keeper.register("h:9", 9, "n", "b" * 64, SHAPE.dtype)
            assert caught.value.code is Code.FOREIGN_CHECKPOINT
            with pytest.raises(FleetError, match="computes in float32") as caught:
                await keeper.register("h:9", 9, "n", SHAPE.fingerprint, "float32")
            assert caught.value.code is Code.WRONG_DTYPE
            await keeper.close()

    in_loop(scenario)


def test_a_malformed_report_is_refused_over_the_wire() -> None:
    async def scenario() -> None:
        async with Fleet() as fleet:
            lease = fleet.workers["expert-0"].keeper.lease_id
            report = pb.WorkerReport(
                seat="expert-0", state="ready", held=pb.ExpertSet(num_layers=4, num_experts=10, bits=b"x")
            )
            async with open_channel(fleet.controller.address) as channel:
                with pytest.raises(grpc.aio.AioRpcError, match=r"ExpertSet\.bits: 1 bytes"):
                    await rpc.MembershipStub(channel).Report(pb.ReportRequest(lease_id=lease, report=report))

    in_loop(scenario)


def test_status_lists_every_seat_the_controller_and_gateways() -> None:
    async def scenario() -> None:
        async with Fleet() as fleet:
            fleet.workers["gateway-0"] = await Worker(fleet.controller.address, "gateway-0").start()
            fleet.all_ready()
            await fleet.until_complete()
            status = await fleet.status()
            assert [(w.role, w.seat) for w in status.workers] == [
                ("controller", "controller"),
                ("attention", "attention-0"),
                ("expert", "expert-0"),
                ("expert", "expert-1"),
                ("expert", "expert-2"),
                ("gateway", "gateway-0"),
            ]
            assert status.ready
            assert status.missing == ""
            assert [w.num_experts for w in status.workers] == [0, 0, 10, 10, 10, 0]

    in_loop(scenario)


def test_a_taken_port_is_one_clear_error() -> None:
    async def scenario() -> None:
        async with Fleet() as fleet:
            port = int(fleet.controller.address.rpartition(":")[2])
            with pytest.raises(OSError, match=f"127.0.0.1:{port} cannot be bound"):
                await Controller(SHAPE, port=port).start()

    in_loop(scenario)
