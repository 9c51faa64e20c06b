"""Steps hit real processes, which a fake fleet starts again."""

import asyncio
import contextlib
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from harness import steps
from harness.disk import Disk
from harness.fleet import FleetError
from harness.plan import Expect, FleetSize, Load, Plan, Soak, Step
from harness.scaling import Scaling
from harness.steps import Happened, Steps

from expertfleet.benchmarks.networks.commands import NetworkError
from expertfleet.benchmarks.networks.network import Network
from expertfleet.cluster.controller.desired_state import DesiredState


class FakeFleet:
    """``stale``: so many times the status tells of an ended process as if it still were there, and ``unsettled`` of experts on
    the move; ``twice`` of a seat that is there twice.
    """

    def __init__(self, *names: str) -> None:
        self.processes = {name: self._start() for name in names}
        self.stale = self.unsettled = self.twice = self.asked_elsewhere = 0
        self.notices = True
        self.restarts = True
        self.commands: list[tuple[str, ...]] = []
        self.left: set[int] = set()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(["sleep", "60"])

    async def status(self) -> dict[str, Any] | None:
        if any(process.poll() is not None for process in self.processes.values()):
            if self.stale:
                self.stale -= 1
            elif self.restarts:
                self.processes = {
                    name: process if process.poll() is None else self._start()
                    for name, process in self.processes.items()
                }
        self.asked_elsewhere += self.notices
        workers = [self._worker(seat) for seat in (*self._attention(), *self._experts())]
        self.unsettled, self.twice = max(0, self.unsettled - 1), max(0, self.twice - 1)
        workers += [self._worker("controller")] if "controller" in self.processes else []
        return {
            "ready": True, "settled": not self.unsettled, "missing": None,
            "workers": workers + (workers[:1] if self.twice else []),
        }  # fmt: skip

    def _worker(self, seat: str) -> dict[str, Any]:
        metrics = {"hedged_frames_total": float(self.asked_elsewhere)}
        own = {"seat": seat, "state": "ready", "pid": self.processes[seat].pid, "metrics": metrics}
        return {"role": seat.split("-")[0], **own}

    def _experts(self) -> list[str]:
        return sorted(name for name in self.processes if name.startswith("expert-"))

    def _attention(self) -> list[str]:
        return sorted(name for name in self.processes if name.startswith("attention-"))

    async def pid(self, target: str) -> int:
        if target not in self.processes:
            raise FleetError(f"{target} has no running process")
        return self.processes[target].pid

    def head(self) -> int | None:
        return self.processes["gcs_server"].pid

    async def command(self, *arguments: str) -> None:
        self.commands.append(arguments)
        if arguments == ("scale", "--expert-shards", "5"):
            raise FleetError("expertfleet scale ended with status 1: too many")
        experts = tuple(int(seat.removeprefix("expert-")) for seat in self._experts())
        wanted = DesiredState((), experts)
        wanted = wanted.scaled("expert", int(arguments[2])) if arguments[0] == "scale" else wanted.without(arguments[1])
        for seat in {*self._experts()} - {*wanted.seats("expert")}:
            process = self.processes.pop(seat)
            self.left.add(process.pid)
            process.kill()
            process.wait()
        self.processes |= {seat: self._start() for seat in {*wanted.seats("expert")} - {*self._experts()}}

    def take_head_away(self) -> set[int]:
        self.restarts = False
        self.processes["controller"].kill()
        return {self.processes["controller"].pid}

    async def bring_head_back(self) -> None:
        self.restarts = True

    def state(self, name: str) -> str:
        stat = Path("/proc", str(self.processes[name].pid), "stat").read_text()
        return stat.rpartition(")")[2].split()[0]

    def end(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()


@pytest.fixture
def fleet() -> Iterator[FakeFleet]:
    fake = FakeFleet("expert-0", "expert-1", "gcs_server")
    yield fake
    fake.end()


def make(
    fleet: FakeFleet, *planned: Step, has_delivered: Any = lambda num_tokens: True, soak: Any = None, repeat: int = 1
) -> Steps:
    plan = Plan("t", Load(max_tokens=50), Expect(0, 0), FleetSize(expert_shards=2), planned, repeat, soak)
    return Steps(fleet, plan, has_delivered, lambda line: None)


def run(run_of: Steps) -> list[Happened]:
    asyncio.run(run_of.run())
    return run_of.happened


def test_a_killed_seat_is_back_with_another_process_only(fleet: FakeFleet) -> None:
    fleet.stale = 3
    pid = fleet.processes["expert-1"].pid
    killed = fleet.processes["expert-1"]
    (happened,) = run(make(fleet, Step("kill", "expert-1", at_s=0)))
    assert killed.wait(1) == -signal.SIGKILL
    assert happened.pid == pid != fleet.processes["expert-1"].pid
    assert happened.seat_s is not None
    assert happened.seat_s >= 0.3
    assert happened.whole_s is not None
    assert not happened.error


@pytest.mark.parametrize("wrong", ["unsettled", "twice"])
def test_a_fleet_is_whole_when_it_is_settled_and_has_every_seat_once(fleet: FakeFleet, wrong: str) -> None:
    setattr(fleet, wrong, 6)
    (happened,) = run(make(fleet, Step("kill", "expert-1", at_s=0)))
    assert happened.seat_s is not None
    assert happened.whole_s is not None
    assert happened.whole_s >= happened.seat_s + 0.3
    assert happened.over_s is not None
    assert happened.over_s >= happened.at_s + happened.whole_s


def test_terminate_is_sigterm(fleet: FakeFleet) -> None:
    ended = fleet.processes["gcs_server"]
    (happened,) = run(make(fleet, Step("terminate", "gcs_server", at_s=0)))
    assert ended.wait(1) == -signal.SIGTERM
    assert happened.seat_s is not None


def test_a_stopped_process_stands_still_and_goes_on(fleet: FakeFleet) -> None:
    one = make(fleet, Step("stop", "expert-0", for_s=0.5, at_s=0))
    states = []

    async def watch() -> None:
        task = asyncio.create_task(one.run())
        await asyncio.sleep(0.25)
        states.append(fleet.state("expert-0"))
        await task
        states.append(fleet.state("expert-0"))

    asyncio.run(watch())
    assert states[0] == "T" != states[1]
    assert one.happened[0].whole_s is not None


def test_a_stopped_process_goes_on_when_the_run_is_cut_short(fleet: FakeFleet) -> None:
    one = make(fleet, Step("stop", "expert-0", for_s=60, at_s=0))

    async def cut() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(one.run(), 0.3)
        await asyncio.sleep(0.1)

    asyncio.run(cut())
    assert fleet.state("expert-0") != "T"


class FakeNetwork(Network):
    """Notes what is done to it, and when."""

    def __init__(self) -> None:
        super().__init__(2)
        self.done: list[tuple[Any, ...]] = []
        self.at: list[float] = []

    def _note(self, *what: Any) -> None:
        self.done.append(what)
        self.at.append(time.monotonic())

    def cut(self, number: int) -> None:
        self._note("cut", number)

    def join(self, number: int) -> None:
        self._note("join", number)

    def change(self, number: int, **values: float) -> None:
        if 10_000 in values.values():
            raise NetworkError("tc: no room")
        self._note(number, values)


def run_networked(fleet: FakeFleet, network: FakeNetwork, *planned: Step) -> list[Happened]:
    plan = Plan("t", Load(max_tokens=50), Expect(0, 0), FleetSize(2, machines=True), planned)
    return run(Steps(fleet, plan, lambda num_tokens: True, lambda line: None, network))


@pytest.mark.parametrize(
    ("step", "done"),
    [
        (Step("cut", "expert-1", for_s=0.5, at_s=0), [("cut", 1), ("join", 1)]),
        (Step("delay", "expert-1", for_s=0.5, ms=200, at_s=0), [(1, {"delay_ms": 200}), (1, {"delay_ms": 0})]),
        (Step("loss", "expert-0", for_s=0.5, percent=5, at_s=0), [(0, {"loss_percent": 5}), (0, {"loss_percent": 0})]),
        (
            Step("corrupt", "expert-0", for_s=0.5, percent=5, at_s=0),
            [(0, {"corrupt_percent": 5}), (0, {"corrupt_percent": 0})],
        ),
    ],
    ids=lambda given: given.do if isinstance(given, Step) else "",
)
def test_a_link_is_as_before_when_a_steps_time_is_over(fleet: FakeFleet, step: Step, done: list[Any]) -> None:
    network = FakeNetwork()
    (happened,) = run_networked(fleet, network, step)
    assert network.done == done
    assert network.at[1] - network.at[0] >= 0.5
    assert happened.name == f"{step.do} {step.target}"
    assert happened.whole_s is not None
    assert happened.pid is None


@pytest.mark.parametrize("do", ["cut", "corrupt"])
def test_a_link_that_was_spoiled_and_nobody_noticed_shows_nothing(fleet: FakeFleet, do: Any) -> None:
    step = Step(do, "expert-1", for_s=0.2, percent=5 if do == "corrupt" else None, at_s=0)
    (happened,) = run_networked(fleet, FakeNetwork(), step)
    assert (happened.error, happened.note) == ("", "2 frames were asked of other shards")
    fleet.notices = False
    (happened,) = run_networked(fleet, FakeNetwork(), step)
    assert happened.error == "nobody noticed: no frame was asked of another shard"


def test_a_disk_is_full_for_so_long_and_then_as_before(fleet: FakeFleet, tmp_path: Path) -> None:
    class FakeDisk(Disk):
        @contextlib.contextmanager
        def full(self) -> Iterator[None]:
            (tmp_path / "full").touch()
            yield
            (tmp_path / "full").rename(tmp_path / "free")

    plan = Plan("t", Load(max_tokens=50), Expect(0, 0), FleetSize(2, disk_mib=64), (Step("fill", for_s=0.3, at_s=0),))
    began = time.monotonic()
    (happened,) = run(Steps(fleet, plan, lambda num_tokens: True, lambda line: None, disk=FakeDisk(tmp_path)))
    assert time.monotonic() - began >= 0.3
    assert (tmp_path / "free").exists()
    assert (happened.name, happened.error, happened.whole_s is not None) == ("fill the disk", "", True)


@pytest.mark.parametrize(
    ("kills", "how", "error"),
    [
        (True, "worker_deaths: the request was running during 2 deaths", ""),
        (True, "", "the request was not ended as one that kills its workers: 1 workers died of it; it was answered"),
        (False, "worker_deaths: ", "no worker died of the request: 0 workers died of it; worker_deaths: "),
    ],
)
def test_a_request_that_crashes_its_workers_has_to_be_ended(kills: bool, how: str, error: str) -> None:
    fleet = FakeFleet("expert-0", "attention-0")

    async def crash() -> str:
        if kills:
            fleet.processes["attention-0"].kill()
            fleet.processes["attention-0"].wait()
        return how

    one = make(fleet, Step("crash", at_s=0))
    one.crash = crash
    try:
        first = fleet.processes["attention-0"].pid
        (happened,) = run(one)
        assert happened.error == error
        assert one.ended == ({first} if kills else set())
        assert happened.whole_s is not None or error
    finally:
        fleet.end()


def test_no_round_begins_when_the_time_is_over(fleet: FakeFleet) -> None:
    one = make(fleet, Step("kill", "expert-1", at_s=0), Step("kill", "expert-0", after_s=0.0), repeat=50)
    one.give_up = time.monotonic() + 2.5
    happened = run(one)
    assert 2 <= len(happened) < 20
    assert len(happened) % 2 == 0, "a round was left half done"


def test_no_cycle_begins_when_the_time_is_over(fleet: FakeFleet) -> None:
    one = make(fleet, Step("kill", "expert-1", at_s=0))
    one.plan = replace(one.plan, step=(), scaling=Scaling(most=3, cycles=10_000, baseline=1))
    one.give_up = time.monotonic() + 1.0
    run(one)
    assert 1 <= one.num_cycles < 10_000


def test_a_link_that_cannot_be_changed_is_an_error(fleet: FakeFleet) -> None:
    (happened,) = run_networked(fleet, FakeNetwork(), Step("delay", "expert-1", for_s=0.5, ms=10_000, at_s=0))
    assert (happened.error, happened.whole_s) == ("tc: no room", None)


def test_a_seat_that_stays_away_is_an_error(fleet: FakeFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "RECOVERY_LIMIT_S", 0.4)
    fleet.restarts = False
    (happened,) = run(make(fleet, Step("kill", "expert-1", at_s=0)))
    assert happened.seat_s is None
    assert happened.error.startswith("not over it after 0.4 s: settled; expert-0 ready (pid ")


def test_a_target_without_a_process_is_an_error(fleet: FakeFleet) -> None:
    (happened,) = run(make(fleet, Step("kill", "controller", at_s=0)))
    assert happened.error == "controller has no running process"


def test_a_command_that_fails_is_an_error_with_its_words(fleet: FakeFleet) -> None:
    grown, failed, drained = run(
        make(
            fleet,
            Step("scale", to=4, at_s=0),
            Step("scale", to=5, after_recovery_s=0),
            Step("drain", "expert-0", after_recovery_s=0),
        )
    )
    assert fleet.commands == [
        ("scale", "--expert-shards", "4"), ("scale", "--expert-shards", "5"), ("drain", "expert-0"),
    ]  # fmt: skip
    assert (grown.error, grown.whole_s is not None) == ("", True)
    assert (failed.error, failed.whole_s) == ("expertfleet scale ended with status 1: too many", None)
    assert (drained.error, drained.whole_s is not None) == ("", True)


def test_steps_come_when_they_are_due(fleet: FakeFleet) -> None:
    asked: list[tuple[int, float]] = []

    def has_delivered(num_tokens: int) -> bool:
        asked.append((num_tokens, time.monotonic()))
        return asked[-1][1] - asked[0][1] > 0.4

    first, second, third = run(
        make(
            fleet,
            Step("kill", "expert-0", at_token=7),
            Step("kill", "expert-1", after_recovery_s=0.3),
            Step("kill", "gcs_server", at_s=1.5),
            has_delivered=has_delivered,
        )
    )
    assert {num_tokens for num_tokens, _ in asked} == {7}
    assert first.whole_s is not None
    assert 0.4 <= first.at_s <= second.at_s - first.whole_s - 0.3
    assert third.at_s >= 1.5


def test_a_step_after_another_does_not_wait_for_recovery(fleet: FakeFleet) -> None:
    fleet.unsettled = 10
    first, second = run(make(fleet, Step("kill", "expert-0", at_s=0.2), Step("kill", "expert-1", after_s=0.2)))
    assert first.over_s is not None
    assert first.at_s + 0.2 <= second.at_s < first.over_s


def test_rounds_end_with_what_the_fleet_did_not_get_over(fleet: FakeFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    kill = Step("kill", "expert-1", at_s=0)
    happened = run(make(fleet, kill, repeat=3))
    assert len({one.pid for one in happened}) == 3
    assert all(after.at_s > before.over_s + 1 for before, after in pairwise(happened) if before.over_s)
    monkeypatch.setattr(steps, "RECOVERY_LIMIT_S", 0.3)
    fleet.restarts = False
    assert len(run(make(fleet, kill, repeat=3))) == 1


def test_a_head_that_is_away_lets_no_recovery_begin() -> None:
    fake = FakeFleet("expert-0", "expert-1", "controller")
    away = Step("away", "head", for_s=1.0, at_s=0)
    plan = Plan(
        "t", Load(max_tokens=50), Expect(0, 0), FleetSize(2, nodes=True), (away, Step("kill", "expert-1", after_s=0.1))
    )
    try:
        one = Steps(fake, plan, lambda num_tokens: True, lambda line: None, nodes=fake)
        gone, killed = run(one)
    finally:
        fake.end()
    for happened in (gone, killed):
        assert not happened.error
        assert happened.over_s is not None
        assert happened.over_s >= 1.0
        assert happened.whole_s is not None
        assert happened.whole_s < 0.9
    assert len(one.ended) == 2


def test_a_workers_node_takes_it_down_with_it(fleet: FakeFleet) -> None:
    worker = fleet.processes["expert-1"].pid
    fleet.processes["raylet of expert-1"] = fleet.processes["gcs_server"]
    plan = Plan(
        "t",
        Load(max_tokens=50),
        Expect(0, 0),
        FleetSize(2, nodes=True),
        (Step("kill", "raylet of expert-1", at_s=0),),
    )
    one = Steps(fleet, plan, lambda num_tokens: True, lambda line: None)

    async def watch() -> None:
        task = asyncio.create_task(one.run())
        await asyncio.sleep(0.5)
        assert not one.happened[0].over_s
        fleet.processes["expert-1"].kill()
        await task

    asyncio.run(watch())
    assert one.happened[0].whole_s is not None
    assert worker in one.ended


def test_scaling_measures_once_at_its_baseline(fleet: FakeFleet) -> None:
    measured: list[int] = []

    async def measure() -> None:
        measured.append(len(fleet.commands))

    plan = Plan("t", Load(max_tokens=50), Expect(0, 0), FleetSize(2), scaling=Scaling(most=4, cycles=4, baseline=2))
    one = Steps(fleet, plan, lambda num_tokens: True, lambda line: None, measure=measure)
    happened = run(one)
    drawn = list(Scaling(most=4, cycles=4, baseline=2).draw(random.Random("1 steps"), 2))
    assert measured == [sum(map(len, drawn[:2]))]
    assert len(happened) == len(fleet.commands) == sum(map(len, drawn))
    assert {command[0] for command in fleet.commands} == {"scale", "drain"}
    assert fleet.left
    assert fleet.left == one.ended
    assert all(one.whole_s is not None for one in happened)


def test_a_soak_draws_until_its_time_is_over(fleet: FakeFleet) -> None:
    soak = Soak(minutes=0.1, step=(Step("kill", "random expert"), Step("kill", "gcs_server")), pause_s=(0.1, 0.2))
    happened = run(make(fleet, soak=soak))
    assert len({one.name for one in happened}) == 3
    assert 5 <= happened[-1].at_s <= 6.5
    assert all(one.whole_s is not None for one in happened)


def test_a_soak_ends_with_what_the_fleet_did_not_get_over(fleet: FakeFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "RECOVERY_LIMIT_S", 0.3)
    fleet.restarts = False
    soak = Soak(minutes=60, step=(Step("kill", "expert-0"),), pause_s=(0, 0))
    assert len(run(make(fleet, soak=soak))) == 1
