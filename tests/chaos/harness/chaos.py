"""One plan from start to end: a fleet, the load in calm, the same load under the plan's steps, the judgement.

Knows nothing of command lines and reports.
"""

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from expertfleet.benchmarks.networks.network import Network, networked

from .disk import Disk, private_disk
from .driver import DEADLY_SEED, Driver, Run
from .fleet import Fleet, FleetError, seats
from .growth import Growth, find_growth, find_replaced, growth_failures
from .judge import Judgement, judge, summarise
from .machines import Machines
from .nodes import Nodes
from .plan import Load, Plan
from .processes import Process, read_processes
from .requests import make_requests
from .steps import Happened, Steps

FEWEST_STREAMS = 4
_DEADLY = Path(__file__).with_name("deadly")


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
    num_cycles: int = 0

    @property
    def failures(self) -> tuple[str, ...]:
        growth = growth_failures(self.plan.expect, self.growths, self.replaced)
        return (*self.judgement.failures, *self._unfinished, *growth, *(f"at the end {wrong}" for wrong in self.end))

    @property
    def _unfinished(self) -> tuple[str, ...]:
        """What keeps the run from showing what it is there for."""
        idle = [
            f"{one.name}: no request was running at {one.at_s:.1f} s"
            for one, beside in zip(self.happened, self.judgement.beside, strict=True)
            if not beside.running
        ]
        scaling = self.plan.scaling
        if scaling is not None and self.num_cycles <= scaling.baseline:
            cycles = f"{self.num_cycles} cycles, of which {scaling.baseline} are the baseline"
            idle.append(f"{cycles}: nothing was held against it")
        return tuple(idle) if self.happened else ("no step was performed",)


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
    began = time.monotonic()
    with private_disk(plan.fleet.disk_mib) as disk, _network(plan) as network:
        say("starting a fleet")
        fleet = _start(model, plan, flags, network, disk.folder)
        try:
            await fleet.wait_ready(ready_s)
            async with Driver(fleet.url, bodies) as driver:
                calm = await _calm(plan.load, driver, say)
                plan = replace(plan, load=replace(plan.load, streams=driver.num_streams))
                say("the same under chaos")
                chaos = await _chaos(plan, fleet, driver, _Site(network, disk, began), say)
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
        chaos.steps.num_cycles,
    )


@dataclass(frozen=True)
class _Site:
    """Where a fleet is, and since when."""

    network: Network | None
    disk: Disk
    began: float


def _start(model: Path, plan: Plan, flags: tuple[str, ...], network: Network | None, tmp: Path) -> AnyFleet:
    size = plan.fleet
    if size.nodes:
        return Nodes(model, size, tmp)
    if network is not None:
        return Machines(model, size, network, tmp)
    return Fleet(model, (*size.flags, *flags), tmp, _deadly_environment() if plan.has("crash") else {})


def _deadly_environment() -> dict[str, str]:
    path = filter(None, (str(_DEADLY), os.environ.get("PYTHONPATH")))
    return {"PYTHONPATH": os.pathsep.join(path), "CHAOS_DEADLY_SEED": str(DEADLY_SEED)}


def _network(plan: Plan) -> AbstractContextManager[Network | None]:
    return networked(plan.fleet.expert_shards, plan.load.seed) if plan.fleet.machines else nullcontext()


async def _calm(load: Load, driver: Driver, say: Callable[[str], None]) -> Run:
    """With half the streams, again, as long as there are gaps beyond what the load allows, down to a few."""
    while True:
        say(f"{driver.num_streams} streams in calm")
        run, once = driver.new_run(), asyncio.Event()
        once.set()
        await run.drive(once)
        if lost := [recording for recording in run.recordings if recording.error]:
            raise FleetError(f"{len(lost)} requests failed in calm already; stream {lost[0].request}: {lost[0].error}")
        gap_ms = summarise(run.recordings).gaps.p999 or 0.0
        if load.calm_gap_ms is None or gap_ms <= load.calm_gap_ms or driver.num_streams <= FEWEST_STREAMS:
            return run
        say(f"gaps of {gap_ms:.0f} ms in calm (99.9th percentile), more than {load.calm_gap_ms:g}: half the streams")
        driver.halve()


async def _chaos(plan: Plan, fleet: AnyFleet, driver: Driver, site: _Site, say: Callable[[str], None]) -> Chaos:
    """The load goes on until the fleet has got over the last step."""
    run, over = driver.new_run(), asyncio.Event()
    nodes = fleet if isinstance(fleet, Nodes) else None
    steps = Steps(fleet, plan, run.has_delivered, say, site.network, nodes, disk=site.disk)
    steps.crash = driver.send_deadly
    if plan.within_min is not None:
        steps.give_up = site.began + 60 * plan.within_min
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
