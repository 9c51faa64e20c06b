from pathlib import Path

import pytest

from expertfleet.cluster.controller.desired_state import DesiredState
from expertfleet.proto.errors import FleetError

FIRST = DesiredState.first(attention_workers=1, expert_shards=3, replicas=1)


def test_growing_takes_the_lowest_free_ordinals_and_shrinking_gives_up_the_highest() -> None:
    holed = FIRST.without("expert-1")
    assert holed.expert == (0, 2)
    assert holed.scaled("expert", 4).expert == (0, 1, 2, 3)
    assert holed.scaled("expert", 1).expert == (0,)
    assert FIRST.scaled("attention", 2).seats("attention") == ("attention-0", "attention-1")


def test_a_file_keeps_it(tmp_path: Path) -> None:
    wanted = FIRST.without("expert-1").with_replicas(1.5)
    wanted.save(tmp_path / "state.json")
    assert DesiredState.load(tmp_path / "state.json") == wanted
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]
    assert DesiredState.load(tmp_path / "other.json") is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"attention": [0], "expert": [0]}'])
def test_a_file_of_something_else_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "state.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"state\.json"):
        DesiredState.load(path)


@pytest.mark.parametrize("seat", ["gateway-0", "expert-3", "expert-", "expert", "expert-1e3", "expert-99999999999999"])
def test_only_a_seat_that_there_is_can_be_drained(seat: str) -> None:
    with pytest.raises(FleetError, match="is no seat of this fleet"):
        FIRST.without(seat)


def test_the_last_of_its_kind_stays() -> None:
    with pytest.raises(FleetError, match="attention-0 is the last of its kind"):
        FIRST.without("attention-0")


def test_nodes_that_come_and_go_change_what_is_wanted() -> None:
    offered = DesiredState((), (), 1).offered(["expert-3", "attention-0", "expert-1", "expert-3"])
    assert (offered.attention, offered.expert) == ((0,), (1, 3))
    assert offered.forgotten(["expert-3", "attention-0", "expert-9"]) == DesiredState((), (1,), 1)


@pytest.mark.parametrize("seat", ["gateway-0", "expert", "expert-4096", "expert--1", "controller"])
def test_what_is_no_workers_seat_is_not_taken(seat: str) -> None:
    with pytest.raises(FleetError, match="is neither attention-N nor expert-N"):
        FIRST.offered([seat])


@pytest.mark.parametrize("name", ["expert-01", "expert-٣", "expert-3 ", "expert-+3"])
def test_a_seat_has_one_name_alone(name: str) -> None:
    wanted = DesiredState.first(1, 4, 1.0)
    assert not wanted.has(name)
    with pytest.raises(FleetError, match="is no seat of this fleet"):
        wanted.without(name)
    with pytest.raises(FleetError, match="is neither attention-N nor expert-N"):
        wanted.offered([name])
