"""One plan from start to end: a fleet, the load in calm, the same load under the plan's steps, the judgement.

Knows nothing of command lines and reports.
"""

import asyncio
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from .driver import Driver, Run
from .fleet import Fleet, FleetError, private_folder
from .judge import Judgement, judge
from .machines import Machines
from .network import Network, networked
from .plan import Plan
from .requests import make_requests
from .steps import Happened, Steps


@dataclass(frozen=True)
class Outcome:
    """``end``: what was wrong with the fleet's end; ``client_lag_s`` tells this process's own share in the gaps."""

    plan: Plan
    judgement: Judgement
    happened: tuple[Happened, ...]
    end: tuple[str, ...]
    client_lag_s: float

    @property
    def failures(self) -> tuple[str, ...]:
        return (*self.judgement.failures, *(f"at the end {wrong}" for wrong in self.end))


async def run_plan(
    plan: Plan, model: Path, flags: tuple[str, ...], ready_s: float, say: Callable[[str], None]
) -> Outcome:
    """Raises FleetError when the fleet is not there after ``ready_s``, or errs in calm already."""
    bodies = make_requests(plan.load, model)
    size = plan.fleet
    with private_folder() as tmp, networked(size.expert_shards) if size.machines else nullcontext() as network:
        say("starting a fleet")
        fleet = Fleet(model, (*size.flags, *flags), tmp) if network is None else Machines(model, size, network, tmp)
        try:
            await fleet.wait_ready(ready_s)
            async with Driver(fleet.url, bodies) as driver:
                say(f"{plan.load.streams} streams in calm")
                calm = await _calm(driver)
                say("the same under chaos")
                chaos, happened = await _chaos(plan, fleet, driver, network, say)
            say("ending the fleet")
            end = await fleet.end()
        finally:
            await fleet.close()
    judgement = judge(plan.expect, calm.recordings, chaos.recordings, happened)
    return Outcome(plan, judgement, tuple(happened), tuple(end), max(calm.lag_s, chaos.lag_s))


async def _calm(driver: Driver) -> Run:
    run, once = driver.new_run(), asyncio.Event()
    once.set()
    await run.drive(once)
    if lost := [recording for recording in run.recordings if recording.error]:
        raise FleetError(f"{len(lost)} requests failed in calm already; stream {lost[0].request}: {lost[0].error}")
    return run


async def _chaos(
    plan: Plan, fleet: Fleet | Machines, driver: Driver, network: Network | None, say: Callable[[str], None]
) -> tuple[Run, list[Happened]]:
    """The load goes on until the fleet has got over the last step."""
    run, over = driver.new_run(), asyncio.Event()
    steps = Steps(fleet, plan, run.has_delivered, say, network)
    async with asyncio.TaskGroup() as group:
        group.create_task(run.drive(over))
        await steps.run()
        over.set()
    return run, steps.happened
