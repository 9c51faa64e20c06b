"""Who is hired and dismissed as nodes come and go, with a Ray and a controller that only take notes."""

from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayActorError

from expertfleet.cluster.controller.desired_state import DesiredState
from expertfleet.cluster.ray import node_actors
from expertfleet.cluster.ray.node_actors import NodeActors, find_offers
from expertfleet.cluster.ray.offer import Offer


class NotedRay:
    """Its actors are numbers; those in ``stillborn`` cannot be made."""

    def __init__(self) -> None:
        self.names: dict[str, int] = {}
        self.killed: list[str] = []
        self.stillborn: set[str] = set()
        self.hired: list[dict[str, Any]] = []
        self.util = self

    def remote(self, kind: type) -> "NotedRay":
        return self

    def actor(self, name: str) -> Any:
        number = len(self.hired)
        self.names[name] = number
        return Actor(name, number)

    def list_named_actors(self, all_namespaces: bool) -> list[dict[str, str]]:
        assert all_namespaces
        return [{"name": name, "namespace": "expertfleet"} for name in self.names] + [
            {"name": "other", "namespace": "somebody's"}
        ]

    def get_actor(self, name: str, namespace: str) -> Any:
        return Actor(name, self.names[name])

    def kill(self, actor: Any, no_restart: bool) -> None:
        assert no_restart
        self.killed.append(actor.name)
        del self.names[actor.name]

    def wait(self, references: list[str], timeout: float) -> tuple[list[str], list[str]]:
        return references, []

    def get(self, reference: str) -> None:
        if reference in self.stillborn:
            raise RayActorError

    def options(self, **given: Any) -> Any:
        self.hired.append(given)
        return Options(self, given["name"])


class Options:
    def __init__(self, ray: NotedRay, name: str) -> None:
        self._ray, self._name = ray, name

    def remote(self) -> Any:
        if self._name in self._ray.names:
            raise ValueError("the name is taken")
        return self._ray.actor(self._name)


class Actor:
    def __init__(self, name: str, number: int) -> None:
        self.name, self.number, self.ping = name, number, self

    def remote(self) -> str:
        return self.name


class NotedController:
    def __init__(self, wanted: DesiredState | None = None) -> None:
        self.is_wanted = wanted or DesiredState((), (), 1)
        self.lingering: set[str] = set()
        self.told: list[list[str]] = []
        self.without_a_process: set[str] = set()
        self.keys: dict[str, str] = {}

    def absent(self) -> set[str]:
        return self.without_a_process

    def wanted(self) -> DesiredState:
        return self.is_wanted

    def occupied(self) -> set[str]:
        return {*self.is_wanted.seats("attention"), *self.is_wanted.seats("expert")} | self.lingering

    def offer(self, seats: dict[str, str]) -> None:
        self.told.append(sorted(seats))
        self.keys |= seats
        self.is_wanted = self.is_wanted.offered(seats)

    def forget(self, seats: list[str]) -> None:
        self.is_wanted = self.is_wanted.forgotten(seats)

    def leave(self, seat: str) -> None:
        self.is_wanted = self.is_wanted.forgotten([seat])


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> NotedRay:
    noted = NotedRay()
    monkeypatch.setattr(node_actors, "ray", noted)
    monkeypatch.setattr("expertfleet.cluster.ray.driver.ray", noted)
    return noted


E0, E1, A0 = Offer("expert-0", "a"), Offer("expert-1", "b"), Offer("attention-0", "c")
NODES = {E0, E1, A0}


def test_the_first_nodes_are_told_together(ray: NotedRay) -> None:
    controller = NotedController()
    hires = NodeActors(controller, gather_s=5, forget_s=600)
    hires.step([], 0)
    hires.step([E0], 10)
    hires.step([E0, E1], 14)
    hires.step(NODES, 18)
    hires.step(NODES, 22)
    assert controller.told == []
    assert ray.names == {}
    hires.step(NODES, 23)
    assert controller.told == [["attention-0", "expert-0", "expert-1"]]
    assert set(ray.names) == {offer.name for offer in NODES}
    assert {option["lifetime"] for option in ray.hired} == {"detached"}
    assert [option["resources"] for option in ray.hired if option["name"] == E1.name] == [{"seat-expert-1.b": 1}]


def test_a_later_node_is_told_at_once(ray: NotedRay) -> None:
    controller = NotedController()
    hires = NodeActors(controller, gather_s=0, forget_s=600)
    hires.step([E0], 0)
    hires.step([E0, E1], 1)
    assert controller.told == [["expert-0"], ["expert-1"]]
    assert set(ray.names) == {E0.name, E1.name}


def test_who_left_is_dismissed_and_its_node_gets_nobody_else(ray: NotedRay) -> None:
    controller = NotedController()
    hires = NodeActors(controller, gather_s=0, forget_s=600)
    hires.step(NODES, 0)
    controller.leave("expert-1")
    controller.lingering = {"expert-1"}
    hires.step(NODES, 1)
    assert ray.killed == []
    controller.lingering = set()
    hires.step(NODES, 2)
    hires.step(NODES, 3)
    assert ray.killed == [E1.name]
    assert E1.name not in ray.names
    again = Offer("expert-1", "another")
    hires.step({*NODES, again}, 4)
    assert again.name in ray.names
    assert controller.keys["expert-1"] == "another"


def test_a_seat_whose_node_does_not_come_back_is_forgotten(ray: NotedRay) -> None:
    controller = NotedController()
    hires = NodeActors(controller, gather_s=0, forget_s=600)
    hires.step(NODES, 0)
    left = NODES - {E1}
    hires.step(left, 600)
    assert controller.is_wanted.expert == (0, 1)
    hires.step(left, 601)
    assert controller.is_wanted.expert == (0,)
    assert ray.killed == [E1.name]


def test_the_next_head_finds_them_as_they_were(ray: NotedRay) -> None:
    controller = NotedController()
    NodeActors(controller, gather_s=0, forget_s=600).step(NODES, 0)
    births = dict(ray.names)
    again = NodeActors(controller, gather_s=5, forget_s=600)
    again.adopt()
    again.step(NODES, 1000)
    assert ray.names == births
    assert ray.killed == []
    again.step([], 1599)
    again.step([], 1601)
    assert controller.is_wanted == DesiredState((), (), 1)


def test_one_that_cannot_be_made_is_made_again_after_a_while(ray: NotedRay, caplog: pytest.LogCaptureFixture) -> None:
    ray.stillborn = {E0.name}
    hires = NodeActors(NotedController(), gather_s=0, forget_s=600)
    hires.step(NODES, 0)
    hires.step(NODES, 4)
    assert ray.killed == []
    hires.step(NODES, 5)
    hires.step(NODES, 6)
    assert ray.killed == [E0.name]
    assert "expert-0 cannot start" in caplog.text
    assert E0.name in ray.names


def test_an_actor_that_ray_has_lost_sight_of_is_made_anew(ray: NotedRay) -> None:
    controller, renewed = NotedController(), []
    hires = NodeActors(controller, gather_s=0, forget_s=600, renew_head=lambda: renewed.append(True))
    hires.step(NODES, 0)
    controller.without_a_process = {"expert-1", "expert-7"}
    for now in range(1, 61):
        hires.step(NODES, now)
    assert not ray.killed
    hires.step(NODES, 61)
    assert (ray.killed, renewed) == ([E1.name], [True])
    assert len([option for option in ray.hired if option["name"] == E1.name]) == 2
    for now in range(62, 181):
        hires.step(NODES, now)
    assert len(ray.killed) == 1, "a slow start is given twice as long"
    hires.step(NODES, 181)
    assert len(ray.killed) == 2
    controller.without_a_process = set()
    hires.step(NODES, 182)
    controller.without_a_process = {"expert-1"}
    for now in range(183, 244):
        hires.step(NODES, now)
    assert len(ray.killed) == 3


def test_a_seat_whose_node_is_gone_waits_for_it(ray: NotedRay) -> None:
    controller = NotedController()
    hires = NodeActors(controller, gather_s=0, forget_s=600)
    hires.step(NODES, 0)
    controller.without_a_process = {"expert-1"}
    rest = NODES - {E1}
    for now in range(1, 300):
        hires.step(rest, now)
    assert not ray.killed


def test_of_two_nodes_at_one_seat_the_first_has_it(ray: NotedRay) -> None:
    controller, second = NotedController(), Offer("expert-1", "second")
    hires = NodeActors(controller, gather_s=0, forget_s=600)
    hires.step(NODES, 0)
    for now in range(1, 5):
        hires.step({*NODES, second}, now)
    hires.step(NODES, 5)
    assert controller.keys["expert-1"] == E1.key
    assert (set(ray.names), ray.killed) == ({offer.name for offer in NODES}, [])


def test_of_two_nodes_that_come_at_once_one_has_the_seat_for_good(ray: NotedRay) -> None:
    controller, other = NotedController(), Offer("expert-1", "another")
    hires = NodeActors(controller, gather_s=0, forget_s=600)
    for now in range(5):
        hires.step({*NODES, other}, now)
    (hired,) = [name for name in ray.names if name.startswith("expert-1.")]
    assert hired == f"expert-1.{controller.keys['expert-1']}"
    assert (len(ray.hired), ray.killed) == (3, [])


def test_the_next_head_leaves_the_seat_to_the_node_that_has_its_worker(ray: NotedRay) -> None:
    second = Offer("expert-1", "second")
    NodeActors(NotedController(), gather_s=0, forget_s=600).step(NODES, 0)
    controller = NotedController()
    again = NodeActors(controller, gather_s=0, forget_s=600)
    again.adopt()
    again.step({*NODES, second}, 0)
    assert controller.keys["expert-1"] == E1.key
    assert ray.killed == []


def test_a_node_that_takes_a_dead_ones_place_gets_a_worker_of_its_own(ray: NotedRay) -> None:
    controller, successor = NotedController(), Offer("expert-1", "successor")
    hires = NodeActors(controller, gather_s=0, forget_s=600)
    hires.step(NODES, 0)
    hires.step({*NODES, successor}, 1)
    hires.step({E0, A0, successor}, 2)
    assert ray.killed == [E1.name]
    assert set(ray.names) == {E0.name, A0.name, successor.name}
    assert controller.keys["expert-1"] == "successor"


def test_a_node_whose_worker_has_left_does_not_stand_in_another_ones_way(ray: NotedRay) -> None:
    controller, fresh = NotedController(), Offer("expert-1", "a fresh one")
    hires = NodeActors(controller, gather_s=0, forget_s=600)
    hires.step(NODES, 0)
    controller.leave("expert-1")
    hires.step(NODES, 1)
    hires.step({*NODES, fresh}, 2)
    hires.step({*NODES, fresh}, 3)
    assert set(ray.names) == {E0.name, A0.name, fresh.name}
    assert controller.keys["expert-1"] == fresh.key


def test_the_next_head_does_not_want_again_what_was_drained_by_hand(ray: NotedRay, tmp_path: Path) -> None:
    controller, file = NotedController(), tmp_path / "offers.json"
    hires = NodeActors(controller, gather_s=0, forget_s=600, told_file=file)
    hires.step(NODES, 0)
    controller.leave("expert-1")
    hires.step(NODES, 1)
    again = NodeActors(controller, gather_s=0, forget_s=600, told_file=file)
    again.adopt()
    again.step(NODES, 100)
    assert controller.is_wanted.expert == (0,)
    assert set(ray.names) == {E0.name, A0.name}
    successor = Offer("expert-1", "a successor")
    again.step({*NODES, successor}, 101)
    assert controller.keys["expert-1"] == successor.key
    assert successor.name in ray.names


def test_the_next_head_lets_who_is_leaving_leave(ray: NotedRay, tmp_path: Path) -> None:
    controller, file = NotedController(), tmp_path / "offers.json"
    NodeActors(controller, gather_s=0, forget_s=600, told_file=file).step(NODES, 0)
    controller.leave("expert-1")
    controller.lingering = {"expert-1"}
    again = NodeActors(controller, gather_s=0, forget_s=600, told_file=file)
    again.adopt()
    again.step(NODES, 100)
    assert (controller.is_wanted.expert, ray.killed) == ((0,), [])
    controller.lingering = set()
    again.step(NODES, 101)
    assert ray.killed == [E1.name]


def test_a_forgotten_seat_is_wanted_again_when_its_node_comes_back(ray: NotedRay, tmp_path: Path) -> None:
    controller = NotedController()
    hires = NodeActors(controller, gather_s=0, forget_s=600, told_file=tmp_path / "offers.json")
    hires.step(NODES, 0)
    hires.step(NODES - {E1}, 601)
    assert controller.is_wanted.expert == (0,)
    hires.step(NODES, 700)
    assert controller.is_wanted.expert == (0, 1)
    assert E1.name in ray.names


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_a_file_of_offers_that_is_not_one_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "offers.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=f"^{file}: does not say which offers were told"):
        NodeActors(NotedController(), gather_s=0, forget_s=600, told_file=file)


def test_a_full_disk_does_not_end_the_hiring(ray: NotedRay, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hires = NodeActors(
        NotedController(), gather_s=0, forget_s=600, told_file=tmp_path / "no such folder" / "offers.json"
    )
    hires.step(NODES, 0)
    assert set(ray.names) == {offer.name for offer in NODES}
    assert "offers.json cannot be written" in caplog.text


def test_an_offer_of_what_is_no_workers_seat_stands_in_nobodys_way(
    ray: NotedRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = ["expert-4096", "expert-01", "expert--1", "expert-٣", "gateway-1", "expert", "attention-99999999999"]
    offered = {Offer(seat, "x").resource: 1.0 for seat in odd} | {
        E1.resource: 1.0,
        Offer("expert-4095", "y").resource: 1.0,
    }
    nodes = [{"Alive": True, "Resources": offered}, {"Alive": False, "Resources": {E0.resource: 1.0}}]
    monkeypatch.setattr(ray, "nodes", lambda: nodes, raising=False)
    assert {offer.seat for offer in find_offers()} == {"expert-1", "expert-4095"}
