import asyncio
from typing import Any

from harness.driver import Driver


def test_at_rest_nothing_runs_and_then_the_load_goes_on(fake_api: Any) -> None:
    async def rest() -> tuple[list[bool], int, int, int]:
        async with fake_api.serving(), Driver(fake_api.url, [{"seed": 1}, {"seed": 2}]) as driver:
            run, enough = driver.new_run(), asyncio.Event()
            load = asyncio.create_task(run.drive(enough))
            await asyncio.sleep(0.1)
            async with run.resting():
                ended = [recording.ended is not None for recording in run.recordings]
                before = len(run.recordings)
                await asyncio.sleep(0.3)
                inside = len(run.recordings)
            await asyncio.sleep(0.3)
            enough.set()
            await load
            return ended, before, inside, len(run.recordings)

    ended, before, inside, after = asyncio.run(rest())
    assert all(ended)
    assert 2 <= before == inside
    assert after >= before + 2
