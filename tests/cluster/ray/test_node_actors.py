"""Which actors are started and stopped as nodes and seats come and go, with a Ray and a controller that only take notes."""

from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayActorError

from expertfleet.cluster.controller.desired_state import DesiredState
from expertfleet.cluster.ray import driver, node_actors
from expertfleet.cluster.ray.driver import find_offers
from expertfleet.cluster.ray.node_actors import NodeActors
from expertfleet.cluster.ray.offer import ANY_SEAT, Offer


class NotedRay:
    """Its actors are numbers; those in ``stillborn`` cannot be made."""

    def __init__(self) -> None:
        self.names: dict[str, int] = {}
        self.killed: list[str] = []
        self.stillborn: set[str] = set()
        self.started: list[dict[str, Any]] = []
        self.tried: list[str] = []
        self.ending: dict[str, int] = {}  # killed, and their names not yet free
        self.util = self

    def remote(self, kind: type) -> "NotedRay":
        return self

    def actor(self, name: str) -> Any:
        number = len(self.started)
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
        self.started.append(given)
        return Options(self, given["name"])


class Options:
    def __init__(self, ray: NotedRay, name: str) -> None:
        self._ray, self._name = ray, name

    def remote(self, seat: str, key: str) -> Any:
        assert self._name == f"{seat}.{key}"
        self._ray.tried.append(seat)
        if self._name in self._ray.names | self._ray.ending:
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
        self.without_a_process: dict[str, str] = {}
        self.keys: dict[str, str] = {}

    def vacancies(self) -> dict[str, str]:
        return self.without_a_process

    def desired(self) -> DesiredState:
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
    monkeypatch.setattr(driver, "ray", noted)
    return noted


E0, E1, A0 = Offer("expert-0", "a"), Offer("expert-1", "b"), Offer("attention-0", "c")
NODES = {E0, E1, A0}


def test_the_first_nodes_are_told_together(ray: NotedRay) -> None:
    controller = NotedController()
    actors = NodeActors(controller, gather_s=5, forget_s=600)
    actors.step([], 0)
    actors.step([E0], 10)
    actors.step([E0, E1], 14)
    actors.step(NODES, 18)
    actors.step(NODES, 22)
    assert controller.told == []
    assert ray.names == {}
    actors.step(NODES, 23)
    assert controller.told == [["attention-0", "expert-0", "expert-1"]]
    assert set(ray.names) == {offer.name for offer in NODES}
    assert {option["lifetime"] for option in ray.started} == {"detached"}
    assert [option["resources"] for option in ray.started if option["name"] == E1.name] == [{"seat-expert-1.b": 1}]


def test_a_later_node_is_told_at_once(ray: NotedRay) -> None:
    controller = NotedController()
    actors = NodeActors(controller, gather_s=0, forget_s=600)
    actors.step([E0], 0)
    actors.step([E0, E1], 1)
    assert controller.told == [["expert-0"], ["expert-1"]]
    assert set(ray.names) == {E0.name, E1.name}


def test_who_left_is_dismissed_and_its_node_gets_nobody_else(ray: NotedRay) -> None:
    controller = NotedController()
    actors = NodeActors(controller, gather_s=0, forget_s=600)
    actors.step(NODES, 0)
    controller.leave("expert-1")
    controller.lingering = {"expert-1"}
    actors.step(NODES, 1)
    assert ray.killed == []
    controller.lingering = set()
    actors.step(NODES, 2)
    actors.step(NODES, 3)
    assert ray.killed == [E1.name]
    assert E1.name not in ray.names
    again = Offer("expert-1", "another")
    actors.step({*NODES, again}, 4)
    assert again.name in ray.names
    assert controller.keys["expert-1"] == "another"


def test_a_seat_whose_node_does_not_come_back_is_forgotten(ray: NotedRay) -> None:
    controller = NotedController()
    actors = NodeActors(controller, gather_s=0, forget_s=600)
    actors.step(NODES, 0)
    left = NODES - {E1}
    actors.step(left, 600)
    assert controller.is_wanted.expert == (0, 1)
    actors.step(left, 601)
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
    actors = NodeActors(NotedController(), gather_s=0, forget_s=600)
    actors.step(NODES, 0)
    actors.step(NODES, 4)
    assert ray.killed == []
    actors.step(NODES, 5)
    actors.step(NODES, 6)
    assert ray.killed == [E0.name]
    assert "expert-0 cannot start" in caplog.text
    assert E0.name in ray.names


def test_an_actor_that_ray_has_lost_sight_of_is_made_anew(ray: NotedRay) -> None:
    controller, restarted = NotedController(), []
    actors = NodeActors(controller, gather_s=0, forget_s=600, restart_ray=lambda: restarted.append(True))
    actors.step(NODES, 0)
    controller.without_a_process = {"expert-1": "lost", "expert-7": "vacant"}
    for now in range(1, 61):
        actors.step(NODES, now)
    assert not ray.killed
    actors.step(NODES, 61)
    assert (ray.killed, restarted) == ([E1.name], [True])
    assert len([option for option in ray.started if option["name"] == E1.name]) == 2
    for now in range(62, 181):
        actors.step(NODES, now)
    assert len(ray.killed) == 1, "a slow start is given twice as long"
    actors.step(NODES, 181)
    assert len(ray.killed) == 2
    controller.without_a_process = {}
    actors.step(NODES, 182)
    controller.without_a_process = {"expert-1": "lost"}
    for now in range(183, 244):
        actors.step(NODES, now)
    assert len(ray.killed) == 3


def test_a_seat_whose_node_is_gone_waits_for_it(ray: NotedRay) -> None:
    controller = NotedController()
    actors = NodeActors(controller, gather_s=0, forget_s=600)
    actors.step(NODES, 0)
    controller.without_a_process = {"expert-1": "lost"}
    rest = NODES - {E1}
    for now in range(1, 300):
        actors.step(rest, now)
    assert not ray.killed


def test_of_two_nodes_at_one_seat_the_first_has_it(ray: NotedRay) -> None:
    controller, second = NotedController(), Offer("expert-1", "second")
    actors = NodeActors(controller, gather_s=0, forget_s=600)
    actors.step(NODES, 0)
    for now in range(1, 5):
        actors.step({*NODES, second}, now)
    actors.step(NODES, 5)
    assert controller.keys["expert-1"] == E1.key
    assert (set(ray.names), ray.killed) == ({offer.name for offer in NODES}, [])


def test_of_two_nodes_that_come_at_once_one_has_the_seat_for_good(ray: NotedRay) -> None:
    controller, other = NotedController(), Offer("expert-1", "another")
    actors = NodeActors(controller, gather_s=0, forget_s=600)
    for now in range(5):
        actors.step({*NODES, other}, now)
    (hired,) = [name for name in ray.names if name.startswith("expert-1.")]
    assert hired == f"expert-1.{controller.keys['expert-1']}"
    assert (len(ray.started), ray.killed) == (3, [])


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
    actors = NodeActors(controller, gather_s=0, forget_s=600)
    actors.step(NODES, 0)
    actors.step({*NODES, successor}, 1)
    actors.step({E0, A0, successor}, 2)
    assert ray.killed == [E1.name]
    assert set(ray.names) == {E0.name, A0.name, successor.name}
    assert controller.keys["expert-1"] == "successor"


def test_a_node_whose_worker_has_left_does_not_stand_in_another_ones_way(ray: NotedRay) -> None:
    controller, fresh = NotedController(), Offer("expert-1", "a fresh one")
    actors = NodeActors(controller, gather_s=0, forget_s=600)
    actors.step(NODES, 0)
    controller.leave("expert-1")
    actors.step(NODES, 1)
    actors.step({*NODES, fresh}, 2)
    actors.step({*NODES, fresh}, 3)
    assert set(ray.names) == {E0.name, A0.name, fresh.name}
    assert controller.keys["expert-1"] == fresh.key


def test_the_next_head_does_not_want_again_what_was_drained_by_hand(ray: NotedRay, tmp_path: Path) -> None:
    controller, file = NotedController(), tmp_path / "offers.json"
    actors = NodeActors(controller, gather_s=0, forget_s=600, offers_file=file)
    actors.step(NODES, 0)
    controller.leave("expert-1")
    actors.step(NODES, 1)
    again = NodeActors(controller, gather_s=0, forget_s=600, offers_file=file)
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
    NodeActors(controller, gather_s=0, forget_s=600, offers_file=file).step(NODES, 0)
    controller.leave("expert-1")
    controller.lingering = {"expert-1"}
    again = NodeActors(controller, gather_s=0, forget_s=600, offers_file=file)
    again.adopt()
    again.step(NODES, 100)
    assert (controller.is_wanted.expert, ray.killed) == ((0,), [])
    controller.lingering = set()
    again.step(NODES, 101)
    assert ray.killed == [E1.name]


def test_a_forgotten_seat_is_wanted_again_when_its_node_comes_back(ray: NotedRay, tmp_path: Path) -> None:
    controller = NotedController()
    actors = NodeActors(controller, gather_s=0, forget_s=600, offers_file=tmp_path / "offers.json")
    actors.step(NODES, 0)
    actors.step(NODES - {E1}, 601)
    assert controller.is_wanted.expert == (0,)
    actors.step(NODES, 700)
    assert controller.is_wanted.expert == (0, 1)
    assert E1.name in ray.names


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_a_file_of_offers_that_is_not_one_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "offers.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=f"^{file}: does not say which offers were told"):
        NodeActors(NotedController(), gather_s=0, forget_s=600, offers_file=file)


def test_a_full_disk_keeps_no_actor_from_starting(
    ray: NotedRay, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    actors = NodeActors(
        NotedController(), gather_s=0, forget_s=600, offers_file=tmp_path / "no such folder" / "offers.json"
    )
    actors.step(NODES, 0)
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


OPEN = Offer(ANY_SEAT, "o")
ON_OPEN = {Offer(seat, OPEN.key).name: seat for seat in ("attention-0", "expert-0", "expert-1", "expert-2")}
THREE = DesiredState.first(1, 2, 1.0)


def test_a_node_that_offers_any_seat_gets_a_worker_for_each_that_is_desired_and_desires_none_itself(
    ray: NotedRay,
) -> None:
    controller = NotedController(THREE)
    actors = NodeActors(controller, gather_s=5, forget_s=600)
    for now in range(3):
        actors.step([OPEN], now)
    assert sorted(map(ON_OPEN.__getitem__, ray.names)) == ["attention-0", "expert-0", "expert-1"]
    assert {tuple(options["resources"].items()) for options in ray.started} == {(("seat-any.o", 1),)}
    assert (len(ray.started), controller.told, controller.is_wanted) == (3, [], THREE)


def test_an_open_node_follows_what_is_desired_up_and_down(ray: NotedRay, caplog: pytest.LogCaptureFixture) -> None:
    controller = NotedController(THREE)
    actors = NodeActors(controller, gather_s=0, forget_s=600)
    actors.step([OPEN], 0)
    controller.is_wanted = THREE.scaled("expert", 3)
    actors.step([OPEN], 1)
    assert "expert-2.o" in ray.names
    controller.is_wanted, controller.lingering = THREE, {"expert-2"}
    actors.step([OPEN], 2)
    assert ray.killed == []
    controller.lingering = set()
    actors.step([OPEN], 3)
    assert ray.killed == ["expert-2.o"]
    controller.is_wanted = THREE.scaled("expert", 3)
    actors.step([OPEN], 4)
    assert "expert-2.o" in ray.names
    assert [record for record in caplog.messages if "expert-2" in record] == [
        *("expert-2 starts", "expert-2 has left", "expert-2 starts"),
    ]


def test_a_seat_whose_actor_was_just_stopped_is_started_as_soon_as_its_name_is_free(ray: NotedRay) -> None:
    controller = NotedController(THREE)
    actors = NodeActors(controller, gather_s=0, forget_s=600)
    ray.ending = {"expert-1.o": 7}
    for now in range(4):
        actors.step([OPEN], now)
    assert "expert-1.o" not in ray.names
    ray.ending = {}
    for now in range(4, 8):
        actors.step([OPEN], now)
    assert ray.tried.count("expert-1") == 5
    assert "expert-1.o" in ray.names


@pytest.mark.parametrize("offered", [{OPEN}, NODES])
def test_a_seat_that_is_desired_again_after_its_worker_drained_gets_a_new_actor_at_once(
    ray: NotedRay, offered: set[Offer]
) -> None:
    controller, restarted = NotedController(THREE), list[bool]()
    actors = NodeActors(controller, gather_s=0, forget_s=600, restart_ray=lambda: restarted.append(True))
    controller.without_a_process = {"expert-1": "vacant"}
    actors.step(offered, 0)
    for now, state in enumerate(("", "lost", "vacant", ""), start=1):
        controller.without_a_process = {"expert-1": state} if state else {}
        actors.step(offered, now)
    assert ray.killed == []
    controller.without_a_process = {"expert-1": "left"}
    for now in range(5, 9):
        actors.step(offered, now)
    assert [name.partition(".")[0] for name in ray.killed] == ["expert-1"]
    assert ray.tried.count("expert-1") == 2
    for state in ("", "left"):
        controller.without_a_process = {"expert-1": state} if state else {}
        actors.step(offered, 9)
    assert len(ray.killed) == 2
    assert restarted == []


def test_a_seat_that_no_worker_has_ever_held_is_not_taken_for_drained(ray: NotedRay) -> None:
    controller = NotedController(THREE)
    controller.without_a_process = {"expert-0": "left", "expert-1": "left"}
    actors = NodeActors(controller, gather_s=0, forget_s=600)
    for now in range(50):
        actors.step([OPEN], now)
    assert ray.killed == []


def test_an_open_nodes_actors_are_replaced_once_they_are_missing_for_long(ray: NotedRay) -> None:
    controller, restarted = NotedController(THREE), list[bool]()
    actors = NodeActors(controller, gather_s=0, forget_s=600, restart_ray=lambda: restarted.append(True))
    actors.step([OPEN], 0)
    controller.without_a_process = {"expert-1": "lost"}
    for now in range(1, 61):
        actors.step([OPEN], now)
    assert (ray.killed, restarted) == ([], [])
    actors.step([OPEN], 61)
    assert (ray.killed, restarted) == (["expert-1.o"], [True])
    assert "expert-1.o" in ray.names


def test_the_next_process_adopts_an_open_nodes_actors(ray: NotedRay) -> None:
    NodeActors(NotedController(THREE), gather_s=0, forget_s=600).step([OPEN], 0)
    again = NodeActors(NotedController(THREE), gather_s=0, forget_s=600)
    again.adopt()
    again.step([OPEN], 100)
    assert (len(ray.started), ray.killed) == (3, [])
