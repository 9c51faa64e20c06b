"""One plan from start to end: a fleet, the load in calm, the same load under the plan's steps, the judgement.

Knows nothing of command lines and reports.
"""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from expertfleet.benchmarks.networks.network import Network, networked

from .driver import Driver, Run
from .fleet import Fleet, FleetError, private_folder, seats
from .growth import Growth, find_growth, find_replaced, growth_failures
from .judge import Judgement, judge
from .machines import Machines
from .nodes import Nodes
from .plan import FleetSize, Plan
from .processes import Process, read_processes
from .requests import make_requests
from .steps import Happened, Steps


@dataclass(frozen=True)
class Outcome:
    """``growths`` of the processes that were there throughout; ``replaced``, those that were not although no step ended them;
    ``end``: what was wrong with the fleet's end; ``client_lag_s`` tells this process's own share in the gaps.
    """

    plan: Plan
    judgement: Judgement
    happened: tuple[Happened, ...]
    growths: tuple[Growth, ...]
    replaced: tuple[str, ...]
    end: tuple[str, ...]
    client_lag_s: float

    @property
    def failures(self) -> tuple[str, ...]:
        growth = growth_failures(self.plan.expect, self.growths, self.replaced)
        return (*self.judgement.failures, *growth, *(f"at the end {wrong}" for wrong in self.end))


AnyFleet = Fleet | Machines | Nodes


@dataclass
class Chaos:
    """What the run under chaos left: processes at its start, at its baseline and at its end."""

    run: Run
    steps: Steps
    first: dict[str, Process]
    baseline: dict[str, Process]
    last: dict[str, Process]


async def run_plan(
    plan: Plan, model: Path, flags: tuple[str, ...], ready_s: float, say: Callable[[str], None]
) -> Outcome:
    """Raises FleetError when the fleet is not there after ``ready_s``, or errs in calm already."""
    bodies = make_requests(plan.load, model)
    size = plan.fleet
    with private_folder() as tmp, _network(plan) as network:
        say("starting a fleet")
        fleet = _start(model, size, flags, network, tmp)
        try:
            await fleet.wait_ready(ready_s)
            async with Driver(fleet.url, bodies) as driver:
                say(f"{plan.load.streams} streams in calm")
                calm = await _calm(driver)
                say("the same under chaos")
                chaos = await _chaos(plan, fleet, driver, network, say)
            say("ending the fleet")
            end = await fleet.end()
        finally:
            await fleet.close()
    happened = chaos.steps.happened
    return Outcome(
        plan,
        judge(plan.expect, calm.recordings, chaos.run.recordings, happened),
        tuple(happened),
        find_growth(chaos.baseline, chaos.last),
        find_replaced(chaos.first, chaos.last, chaos.steps.ended),
        tuple(end),
        max(calm.lag_s, chaos.run.lag_s),
    )


def _start(model: Path, size: FleetSize, flags: tuple[str, ...], network: Network | None, tmp: Path) -> AnyFleet:
    if size.nodes:
        return Nodes(model, size, tmp)
    return Fleet(model, (*size.flags, *flags), tmp) if network is None else Machines(model, size, network, tmp)


def _network(plan: Plan) -> AbstractContextManager[Network | None]:
    return networked(plan.fleet.expert_shards, plan.load.seed) if plan.fleet.machines else nullcontext()


async def _calm(driver: Driver) -> Run:
    run, once = driver.new_run(), asyncio.Event()
    once.set()
    await run.drive(once)
    if lost := [recording for recording in run.recordings if recording.error]:
        raise FleetError(f"{len(lost)} requests failed in calm already; stream {lost[0].request}: {lost[0].error}")
    return run


async def _chaos(
    plan: Plan, fleet: AnyFleet, driver: Driver, network: Network | None, say: Callable[[str], None]
) -> Chaos:
    """The load goes on until the fleet has got over the last step."""
    run, over = driver.new_run(), asyncio.Event()
    nodes = fleet if isinstance(fleet, Nodes) else None
    steps = Steps(fleet, plan, run.has_delivered, say, network, nodes)
    first = await _processes(fleet)
    chaos = Chaos(run, steps, first, first, {})

    async def measure() -> None:
        async with run.resting():
            chaos.baseline = await _processes(fleet)

    steps.measure = measure
    async with asyncio.TaskGroup() as group:
        group.create_task(run.drive(over))
        await steps.run()
        over.set()
    chaos.last = await _processes(fleet)
    return chaos


async def _processes(fleet: AnyFleet) -> dict[str, Process]:
    workers = seats(await fleet.status())
    return await read_processes({worker["seat"]: worker["pid"] for worker in workers if worker["pid"]})
