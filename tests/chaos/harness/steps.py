"""Performs a plan's steps at their time and watches how long the fleet needs to get over each.

Knows nothing of the load but how far it is. The fleet has got over a step when its seat is ready again (with another pid, if
its process was ended), and is whole when its status says settled, every seat is there once and ready, and no ended process is
listed.
"""

import asyncio
import contextlib
import math
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from expertfleet.benchmarks.networks.commands import NetworkError
from expertfleet.benchmarks.networks.network import Network
from expertfleet.cluster.ray.process_reaper import alive

from .disk import Disk
from .fleet import FleetError, picture, seats
from .plan import HEAD, HEAD_NODE, RAYLET, Plan, Soak, Step
from .scaling import Scaling

RECOVERY_LIMIT_S = 180.0
_POLL_S = 0.1
_LINK_FIELDS = {"delay": "delay_ms", "loss": "loss_percent", "corrupt": "corrupt_percent"}
_ENDED = "worker_deaths"
_ASKED_ELSEWHERE = ("retried_frames_total", "hedged_frames_total")
_SIGNALS = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM, "stop": signal.SIGSTOP}


@dataclass
class Happened:
    """One step and what came of it, in seconds: ``at_s`` and ``over_s``, when the fleet was whole, since the load began, the
    others since the fleet could recover.
    """

    step: Step
    at_s: float
    pid: int | None = None
    seat_s: float | None = None
    whole_s: float | None = None
    over_s: float | None = None
    error: str = ""
    note: str = ""

    @property
    def name(self) -> str:
        whole = {"scale": f"scale to {self.step.to}", "fill": "fill the disk", "crash": "crash by a request"}
        return whole.get(self.step.do) or f"{self.step.do} {self.step.target}"


class AnyFleet(Protocol):
    async def status(self) -> dict[str, Any] | None: ...
    async def pid(self, target: str) -> int: ...
    def head(self) -> int | None: ...
    async def command(self, *arguments: str) -> None: ...


class AnyNodes(AnyFleet, Protocol):
    def take_head_away(self) -> set[int]: ...
    async def bring_head_back(self) -> None: ...


async def _nothing() -> None:
    return None


@dataclass
class Steps:
    """One run of a plan's steps; ``happened`` fills as they come, ``ended`` are the processes that steps ended.

    ``measure`` is called when a scaling's baseline is reached; ``crash`` sends a request that kills its workers, and says how it
    ended. After ``give_up``, on the clock, no round or cycle begins; ``num_cycles`` of a scaling were completed.
    """

    fleet: AnyFleet
    plan: Plan
    has_delivered: Callable[[int], bool]
    say: Callable[[str], None]
    network: Network | None = None
    nodes: AnyNodes | None = None
    measure: Callable[[], Awaitable[None]] = _nothing
    crash: Callable[[], Awaitable[str]] | None = None
    disk: Disk | None = None
    give_up: float = math.inf
    num_cycles: int = 0
    happened: list[Happened] = field(default_factory=list)
    ended: set[int] = field(default_factory=set)
    _recoveries: list[asyncio.Task[None]] = field(default_factory=list)
    _head_is_there: asyncio.Event = field(default_factory=asyncio.Event)
    _began: float = 0.0

    async def run(self) -> None:
        """Returns when the last step is performed and the fleet has got over all of them, or has had its time."""
        self._began = time.monotonic()
        self._head_is_there.set()
        rng = random.Random(f"{self.plan.load.seed} steps")
        try:
            for number, step in enumerate(self.plan.rounds()):
                await self._wait(step)
                begins_round = number and number % len(self.plan.step) == 0
                if (self.plan.repeat > 1 and self._has_failed) or (begins_round and self._is_late):
                    break
                await self._perform(step.drawn(rng, self.plan.fleet))
            if self.plan.soak is not None:
                await self._soak(self.plan.soak, rng)
            if self.plan.scaling is not None:
                await self._cycle(self.plan.scaling, rng)
            await self._recovered()
        finally:
            for task in self._recoveries:
                task.cancel()

    async def _soak(self, soak: Soak, rng: random.Random) -> None:
        """Ends with its time, or with a step that the fleet did not get over."""
        give_up = min(self.give_up, time.monotonic() + 60 * soak.minutes)
        for step in soak.draw(rng, self.plan.fleet):
            await self._wait(step)
            if time.monotonic() > give_up or self._has_failed:
                return
            await self._perform(step)

    async def _cycle(self, scaling: Scaling, rng: random.Random) -> None:
        """Ends with its last cycle, or with a step that the fleet did not get over."""
        for number, changes in enumerate(scaling.draw(rng, self.plan.fleet.expert_shards), 1):
            await self._recovered()
            if self._is_late:
                return
            for change in changes:
                await self._recovered()
                if self._has_failed:
                    return
                step = Step("scale", to=change) if isinstance(change, int) else Step("drain", change)
                await self._perform(step)
            self.num_cycles = number
            if number == scaling.baseline:
                await self._recovered()
                await self.measure()

    @property
    def _is_late(self) -> bool:
        return time.monotonic() > self.give_up

    @property
    def _has_failed(self) -> bool:
        return any(one.error for one in self.happened)

    async def _wait(self, step: Step) -> None:
        if step.at_s is not None:
            await asyncio.sleep(self._began + step.at_s - time.monotonic())
        if step.at_token is not None:
            while not self.has_delivered(step.at_token):
                await asyncio.sleep(0.005)
        if step.after_s is not None:
            before = self.happened[-1].at_s if self.happened else 0.0
            await asyncio.sleep(self._began + before + step.after_s - time.monotonic())
        if step.after_recovery_s is not None:
            await self._recovered()
            await asyncio.sleep(step.after_recovery_s)

    async def _recovered(self) -> None:
        await asyncio.gather(*self._recoveries)
        self._recoveries.clear()

    async def _perform(self, step: Step) -> None:
        happened = Happened(step, self._now())
        self.happened.append(happened)
        try:
            if step.do in _SIGNALS:
                happened.pid = await self.fleet.pid(step.target)
                ended = {happened.pid}
                if step.target.startswith(RAYLET):  # its worker goes down with it
                    ended.add(await self.fleet.pid(step.seat))
                happened.at_s = self._now()
                os.kill(happened.pid, _SIGNALS[step.do])
                if step.do != "stop":
                    self.ended |= ended
            elif step.do == "away":
                assert self.nodes is not None
                self._head_is_there.clear()
                self.ended |= self.nodes.take_head_away()
            self.say(happened.name)
            self._recoveries.append(asyncio.create_task(self._recovery(happened)))
        except (FleetError, ProcessLookupError) as error:
            happened.error = str(error)

    async def _recovery(self, happened: Happened) -> None:
        step = happened.step
        try:
            await self._allow(happened)
            await self._head_is_there.wait()
            began, status = time.monotonic(), None
            while (elapsed := time.monotonic() - began) < RECOVERY_LIMIT_S:
                status = await self.fleet.status()
                if happened.seat_s is None and self._has_seat(step, status):
                    happened.seat_s = elapsed
                if happened.seat_s is not None and self._is_whole(status):
                    happened.whole_s, happened.over_s = elapsed, self._now()
                    self.say(f"whole again {elapsed:.1f} s after {happened.name}")
                    return
                await asyncio.sleep(_POLL_S)
            happened.error = f"not over it after {RECOVERY_LIMIT_S:g} s: {picture(status)}"
        except (FleetError, NetworkError) as error:
            happened.error = str(error)

    async def _allow(self, happened: Happened) -> None:
        """What has to be over before a recovery can begin."""
        step = happened.step
        if step.do == "stop":
            await self._stand_still(happened)
        elif step.do == "cut" or step.do in _LINK_FIELDS:
            before = _asked_elsewhere(await self.fleet.status())
            await (self._cut_link(step) if step.do == "cut" else self._spoil_link(step))
            self._check_noticed(happened, _asked_elsewhere(await self.fleet.status()) - before)
        elif step.do == "fill":
            assert step.for_s is not None
            assert self.disk is not None
            with self.disk.full():
                await asyncio.sleep(step.for_s)
        elif step.do == "crash":
            await self._crash(happened)
        elif step.do == "away":
            assert step.for_s is not None
            assert self.nodes is not None
            await asyncio.sleep(step.for_s)
            await self.nodes.bring_head_back()
            self._head_is_there.set()
        elif step.do in ("scale", "drain"):
            leaving = self._leaving(step, await self.fleet.status())
            size = ("--expert-shards", str(step.to))
            await self.fleet.command(*(("scale", *size) if step.do == "scale" else ("drain", step.target)))
            self.ended |= leaving

    async def _stand_still(self, happened: Happened) -> None:
        assert happened.step.for_s is not None
        assert happened.pid is not None
        try:
            await asyncio.sleep(happened.step.for_s)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(happened.pid, signal.SIGCONT)

    async def _cut_link(self, step: Step) -> None:
        assert step.for_s is not None
        assert self.network is not None
        self.network.cut(step.machine)
        await asyncio.sleep(step.for_s)
        self.network.join(step.machine)

    @staticmethod
    def _check_noticed(happened: Happened, num_asked: int) -> None:
        """A link that was cut, or turned over bits, unnoticed was none that anybody used."""
        happened.note = f"{num_asked} frames were asked of other shards"
        if not num_asked and happened.step.do in ("cut", "corrupt"):
            raise FleetError("nobody noticed: no frame was asked of another shard")

    def _leaving(self, step: Step, status: dict[str, Any] | None) -> set[int]:
        """The processes that a change of the fleet's size ends: a scale gives up the highest seats."""
        experts = [worker for worker in seats(status) if worker["role"] == "expert"]
        by_ordinal = sorted(experts, key=lambda worker: int(worker["seat"].rpartition("-")[2]))
        leaving = by_ordinal[step.to :] if step.do == "scale" else seats(status, step.target)
        return {worker["pid"] for worker in leaving}

    async def _spoil_link(self, step: Step) -> None:
        """In a thread: the first time takes what starts an emulator, and the client's own lag would show in the gaps."""
        assert step.for_s is not None
        assert self.network is not None
        name, value = _LINK_FIELDS[step.do], step.ms if step.do == "delay" else step.percent
        assert value is not None
        await asyncio.to_thread(self.network.change, step.machine, **{name: value})
        await asyncio.sleep(step.for_s)
        await asyncio.to_thread(self.network.change, step.machine, **{name: 0.0})

    async def _crash(self, happened: Happened) -> None:
        assert self.crash is not None
        before = _attention(await self.fleet.status())
        how = await self.crash()
        died = {pid for pid in before if not alive(pid)}
        self.ended |= died
        happened.note = f"{len(died)} workers died of it; {how or 'it was answered'}"
        if not died:
            raise FleetError(f"no worker died of the request: {happened.note}")
        if _ENDED not in how:
            raise FleetError(f"the request was not ended as one that kills its workers: {happened.note}")

    def _has_seat(self, step: Step, status: dict[str, Any] | None) -> bool:
        if step.do == "scale":
            return len([worker for worker in seats(status) if worker["role"] == "expert"]) == step.to
        if step.do in ("drain", "fill", "crash"):
            return True
        if step.target == HEAD:
            return self.fleet.head() not in (None, *self.ended)
        seat = "controller" if step.target == HEAD_NODE else step.seat
        return any(self._is_ready(worker) for worker in seats(status, seat))

    def _is_whole(self, status: dict[str, Any] | None) -> bool:
        if status is None or not status["settled"]:
            return False
        names = [worker["seat"] for worker in seats(status)]
        return len(names) == len(set(names)) and all(map(self._is_ready, seats(status)))

    def _is_ready(self, worker: dict[str, Any]) -> bool:
        return worker["state"] == "ready" and worker["pid"] not in self.ended

    def _now(self) -> float:
        return time.monotonic() - self._began


def _attention(status: dict[str, Any] | None) -> set[int]:
    return {worker["pid"] for worker in seats(status) if worker["role"] == "attention"}


def _asked_elsewhere(status: dict[str, Any] | None) -> int:
    """Frames that attention workers have asked of another shard, as the first one failed or was slow."""
    return int(sum(worker["metrics"].get(name, 0) for worker in seats(status) for name in _ASKED_ELSEWHERE))
