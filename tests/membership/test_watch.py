import asyncio
from typing import Any

import pytest

from expertfleet.membership.epoch import Epoch, EpochId
from expertfleet.membership.watch import EpochWatch


def epoch(incarnation: int, counter: int) -> Epoch:
    return Epoch(EpochId(incarnation, counter), "f" * 64, "bfloat16", (), (), complete=False)


async def until(seen: list[EpochId], wanted: int) -> None:
    async with asyncio.timeout(8):
        while len(seen) < wanted:
            await asyncio.sleep(0.02)


def test_epochs_only_ever_get_newer_across_reconnections(controller: Any) -> None:
    async def scenario() -> None:
        seen: list[EpochId] = []
        controller.epochs = [
            epoch(5, 2).to_proto(),
            epoch(5, 1).to_proto(),
            epoch(5, 2).to_proto(),
            epoch(5, 3).to_proto(),
        ]
        await controller.start()
        watch = EpochWatch(controller.address, "attention-0")
        task = asyncio.create_task(watch.run(lambda one: seen.append(one.id)))
        await until(seen, 2)
        await controller.stop()
        controller.epochs = [epoch(4, 9).to_proto(), epoch(5, 3).to_proto(), epoch(6, 1).to_proto()]
        await asyncio.sleep(0.2)
        assert not task.done()
        await controller.start()
        await until(seen, 3)
        assert seen == [EpochId(5, 2), EpochId(5, 3), EpochId(6, 1)]
        assert watch.last == EpochId(6, 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await controller.stop()

    asyncio.run(scenario())


def test_a_watch_waits_for_a_controller_that_starts_later(controller: Any) -> None:
    async def scenario() -> None:
        seen: list[EpochId] = []
        await controller.start()
        await controller.stop()
        task = asyncio.create_task(EpochWatch(controller.address, "gateway-0").run(lambda one: seen.append(one.id)))
        await asyncio.sleep(0.3)
        controller.epochs = [epoch(1, 1).to_proto()]
        await controller.start()
        await until(seen, 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await controller.stop()

    asyncio.run(scenario())


def test_an_unusable_epoch_is_skipped_and_the_watch_goes_on(controller: Any) -> None:
    async def scenario() -> None:
        seen: list[EpochId] = []
        broken = epoch(5, 2).to_proto()
        broken.experts.add(seat="expert-0").held.num_layers = 3
        broken.experts[0].held.num_experts = 9
        controller.epochs = [epoch(5, 1).to_proto(), broken, epoch(5, 3).to_proto()]
        await controller.start()
        task = asyncio.create_task(EpochWatch(controller.address, "x").run(lambda one: seen.append(one.id)))
        await until(seen, 2)
        assert seen == [EpochId(5, 1), EpochId(5, 3)]
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await controller.stop()

    asyncio.run(scenario())
