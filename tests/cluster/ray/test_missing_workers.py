"""Seats to which nobody comes although Ray says that it started them."""

import time
from typing import Any

import pytest
from until import until

from expertfleet.cluster.commands import local_actors
from expertfleet.cluster.commands.local_actors import LocalActors
from expertfleet.cluster.ray.missing_workers import MissingWorkers
from expertfleet.proto.generated import membership_pb2 as pb


def test_a_seat_is_named_once_it_has_been_empty_for_long_and_then_twice_as_long() -> None:
    absences = MissingWorkers()
    named = [now for now in range(1000) if absences.look(["a"], now)]
    assert named == [60, 180, 420, 900]


def test_a_seat_that_was_taken_meanwhile_begins_anew() -> None:
    absences = MissingWorkers()
    assert not absences.look(["a", "b"], 0)
    assert not absences.look(["b"], 59)
    assert absences.look(["a", "b"], 61) == ["b"]
    absences.forgive(["b"])
    assert absences.look(["a", "b"], 121) == ["a", "b"]


class NotedRay:
    def __init__(self) -> None:
        self.killed: list[str] = []

    def kill(self, handle: str, no_restart: bool) -> None:
        assert no_restart
        self.killed.append(handle)


def test_the_crew_gives_up_an_actor_that_does_not_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    noted, renewed = NotedRay(), []
    monkeypatch.setattr(local_actors, "ray", noted)
    config: Any = None
    one = LocalActors(config, config, config, lambda: renewed.append(True))
    one._handles = {"expert-0": "first", "expert-1": "second", "controller": "third"}
    status = pb.FleetStatus(
        workers=[
            pb.WorkerStatus(role="expert", seat="expert-0", state="ready", wanted=True),
            pb.WorkerStatus(role="expert", seat="expert-1", state="lost", wanted=True),
            pb.WorkerStatus(role="expert", seat="expert-2", state="vacant", wanted=True),
            pb.WorkerStatus(role="controller", seat="controller", state="ready"),
        ]
    )
    one.replace_absent(status, 0)
    one.replace_absent(status, 59)
    assert not renewed
    one.replace_absent(status, 60)
    assert renewed == [True]
    assert set(one._handles) == {"expert-0", "controller"}
    give_up = time.monotonic() + 5
    while noted.killed != ["second"]:
        assert time.monotonic() < give_up
        time.sleep(0.01)


def test_a_seat_that_left_a_moment_ago_is_hired_as_soon_as_its_name_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_actors, "ray", NotedRay())
    config: Any = None
    one, tried, names_taken = LocalActors(config, config, config, lambda: None), [], {"expert-1"}

    def hire(seat: str) -> None:
        tried.append(seat)
        if seat in names_taken:
            raise ValueError(f"The name {seat} is already taken")
        one._handles[seat] = seat

    monkeypatch.setattr(one, "_hire_worker", hire)
    wanted = pb.FleetStatus(workers=[pb.WorkerStatus(role="expert", seat="expert-1", state="vacant", wanted=True)])
    one._handles["expert-1"] = "leaving"
    one.follow(pb.FleetStatus())
    for _ in range(3):
        one.follow(wanted)
    names_taken.clear()
    one.follow(wanted)
    one.follow(wanted)
    assert tried == ["expert-1"] * 4
    assert one._handles == {"expert-1": "expert-1"}


def test_a_seat_that_is_wanted_again_after_its_worker_has_drained_gets_a_new_one_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    noted = NotedRay()
    monkeypatch.setattr(local_actors, "ray", noted)
    config: Any = None
    one, hired = LocalActors(config, config, config, lambda: None), list[str]()

    def hire(seat: str) -> None:
        hired.append(seat)
        one._handles[seat] = f"actor {len(hired)}"

    def told(state: str, pid: int) -> None:
        worker = pb.WorkerStatus(role="expert", seat="expert-1", state=state, wanted=True, pid=pid)
        one.follow(pb.FleetStatus(workers=[worker]))

    monkeypatch.setattr(one, "_hire_worker", hire)
    one._handles["expert-1"] = "actor 0"
    for state in ("ready", "draining", "lost", "vacant"):
        told(state, 7)
    assert hired == []
    for _ in range(3):
        told("left", 7)
    assert (hired, one._handles) == (["expert-1"], {"expert-1": "actor 1"})
    told("ready", 8)
    told("left", 8)
    assert one._handles == {"expert-1": "actor 2"}
    until(lambda: noted.killed == ["actor 0", "actor 1"], 5)
