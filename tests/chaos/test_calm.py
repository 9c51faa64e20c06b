"""How many streams a machine can bear in calm."""

import asyncio
from typing import Any

import pytest
from harness import chaos
from harness.driver import Driver
from harness.plan import Load


@pytest.mark.parametrize(
    ("streams", "calm_gap_ms", "fault", "left"),
    [(16, 300.0, "gap", 4), (16, 5000.0, "gap", 16), (16, None, "gap", 16), (3, 300.0, "gap", 3), (16, 300.0, "", 16)],
)
def test_half_the_streams_are_left_out_until_gaps_are_small_or_few_are_left(
    fake_api: Any, streams: int, calm_gap_ms: float | None, fault: str, left: int
) -> None:
    fake_api.fault = fault
    said: list[str] = []

    async def scenario() -> tuple[int, int]:
        bodies = [{"seed": 1 + seed} for seed in range(streams)]
        async with fake_api.serving(), Driver(fake_api.url, bodies) as driver:
            run = await chaos._calm(Load(max_tokens=12, calm_gap_ms=calm_gap_ms), driver, said.append)
            return driver.num_streams, len(run.recordings)

    assert asyncio.run(scenario()) == (left, left)
    assert said[0] == f"{streams} streams in calm"
    assert said[-1] == f"{left} streams in calm"
    num_runs = sum(line.endswith("streams in calm") for line in said)
    assert len(set(fake_api.salts)) == num_runs, "no run may find its prompts in the cache of the one before"
