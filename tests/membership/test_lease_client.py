import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from expertfleet.membership.epoch import ExpertSet
from expertfleet.membership.lease_client import LeaseClient
from expertfleet.proto.errors import Code, FleetError
from expertfleet.proto.generated import membership_pb2 as pb

HELD = ExpertSet.full(3, 5, num_dense_layers=1)


async def until(condition: Callable[[], bool], timeout_s: float = 8.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.02)


def ready_report() -> pb.WorkerReport:
    return pb.WorkerReport(seat="expert-1", state="ready", held=HELD.to_proto())


async def cancelled(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def in_loop(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(scenario())


def test_registering_waits_for_a_controller_that_is_not_there_yet(controller: Any) -> None:
    async def scenario() -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            controller.port = probe.getsockname()[1]
        keeper = LeaseClient(controller.address, "expert-1")
        asked = asyncio.create_task(keeper.register("h:1", 42, "node", "f" * 64, "float32", HELD))
        await asyncio.sleep(0.4)
        assert not asked.done()
        await controller.start()
        reply = await asked
        assert reply.lease_id == keeper.lease_id == 1
        request = controller.registrations[0]
        assert (request.seat, request.pid, request.fingerprint, request.dtype) == ("expert-1", 42, "f" * 64, "float32")
        assert ExpertSet.from_proto(request.held) == HELD
        await keeper.close()
        await controller.stop()

    in_loop(scenario)


def test_an_earlier_controller_than_has_been_heard_gives_no_lease(controller: Any) -> None:
    async def scenario() -> None:
        controller.incarnation = 7
        await controller.start()
        keeper = LeaseClient(controller.address, "expert-1")
        await keeper.register("h:1", 42, "node", held=HELD)
        orders: list[pb.Order] = []
        keeping = [
            asyncio.create_task(keeper.keep(ready_report, 0.05)),
            asyncio.create_task(keeper.follow(orders.append)),
        ]
        controller.incarnation, controller.orders = 6, [pb.Order(leave=True)]
        controller.known.clear()
        await until(lambda: len(controller.registrations) >= 3)
        assert keeper.lease_id == 1, "a lease of the earlier controller was taken"
        assert not orders
        controller.incarnation = 8
        await until(lambda: keeper.lease_id > 1)
        await until(lambda: bool(orders))
        for task in keeping:
            await cancelled(task)
        await keeper.close()
        await controller.stop()

    in_loop(scenario)


def test_registering_gives_up_at_its_deadline_and_names_the_controller() -> None:
    async def scenario() -> None:
        keeper = LeaseClient("127.0.0.1:9", "expert-1")
        with pytest.raises(FleetError, match=r"controller 127.0.0.1:9 did not answer for 0.5 s"):
            await keeper.register("h:1", 42, "node", deadline_s=0.5)
        await keeper.close()

    in_loop(scenario)


def test_a_refusal_is_raised_at_once_with_its_code(controller: Any) -> None:
    async def scenario() -> None:
        controller.refusal = FleetError(Code.FOREIGN_CHECKPOINT, "expert-1 serves aa, the fleet bb")
        await controller.start()
        keeper = LeaseClient(controller.address, "expert-1")
        with pytest.raises(FleetError, match="expert-1 serves aa, the fleet bb") as caught:
            await keeper.register("h:1", 42, "node")
        assert caught.value.code is Code.FOREIGN_CHECKPOINT
        assert len(controller.registrations) == 1
        await keeper.close()
        await controller.stop()

    in_loop(scenario)


def test_a_forgotten_lease_is_registered_again_with_what_is_held(controller: Any) -> None:
    async def scenario() -> None:
        await controller.start()
        keeper = LeaseClient(controller.address, "expert-1")
        await keeper.register("h:1", 42, "node", "f" * 64, "float32")
        kept = asyncio.create_task(keeper.keep(ready_report, interval_s=0.05))
        await until(lambda: len(controller.reports) >= 3)
        assert len(controller.registrations) == 1
        controller.known.clear()
        await until(lambda: len(controller.registrations) == 2)
        await until(lambda: controller.reports[-1].lease_id == 2)
        assert ExpertSet.from_proto(controller.registrations[1].held) == HELD
        assert not controller.registrations[0].HasField("held")
        await cancelled(kept)
        await keeper.close()
        await controller.stop()

    in_loop(scenario)


def test_keeping_survives_the_controllers_absence(controller: Any) -> None:
    async def scenario() -> None:
        await controller.start()
        keeper = LeaseClient(controller.address, "expert-1")
        await keeper.register("h:1", 42, "node")
        kept = asyncio.create_task(keeper.keep(ready_report, interval_s=0.05))
        await until(lambda: len(controller.reports) >= 2)
        await controller.stop()
        await asyncio.sleep(0.5)
        assert not kept.done()
        seen = len(controller.reports)
        await controller.start()
        await until(lambda: len(controller.reports) > seen)
        await cancelled(kept)
        await keeper.close()
        await controller.stop()

    in_loop(scenario)


def test_keeping_ends_with_the_refusal_when_the_seat_is_another_ones(controller: Any) -> None:
    async def scenario() -> None:
        await controller.start()
        keeper = LeaseClient(controller.address, "expert-1")
        await keeper.register("h:1", 42, "node")
        controller.known.clear()
        controller.refusal = FleetError(Code.BAD_REQUEST, "seat expert-1 was taken over by pid 43")
        with pytest.raises(FleetError, match="taken over by pid 43"):
            await keeper.keep(ready_report, interval_s=0.05)
        await keeper.close()
        await controller.stop()

    in_loop(scenario)
