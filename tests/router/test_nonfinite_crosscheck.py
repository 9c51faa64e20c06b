"""A shard's answer that is not finite is asked of a replica: who is wrong is passed over, and only its own row is lost."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from expertfleet.proto.errors import Code, FleetError
from expertfleet.router.dispatch.combine import combine
from expertfleet.router.dispatch.layer_dispatch import LayerDispatch

_spec = importlib.util.spec_from_file_location("test_router", Path(__file__).with_name("test_router.py"))
assert _spec is not None
assert _spec.loader is not None
test_router = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(test_router)

E, H, K = test_router.E, test_router.H, test_router.K


@pytest.fixture
def fleet() -> Iterator:
    fleet = test_router.Fleet(deadline_s=5.0)
    yield fleet
    fleet.close()


def replicated(fleet, count: int = 2) -> None:
    fleet.add_shards(count)
    fleet.commit(lambda layer, expert: list(range(count)))
    assert fleet.wait_usable()
    assert fleet.wait_all_up()


def ask(fleet, x: torch.Tensor) -> tuple[LayerDispatch, torch.Tensor]:
    """Each row's experts are all experts from the row's number on."""
    T = len(x)
    ids = torch.stack([(torch.arange(K) + row) % E for row in range(T)])
    rows = test_router.fake_shard.expected_rows(x.repeat_interleave(K, 0), ids.reshape(-1))
    return fleet.router.dispatch(1, x, ids, torch.ones(T, K)), combine(rows.view(T, K, H), torch.ones(T, K))


def asked_of(fleet) -> list[int]:
    return [len(shard.frames) for shard in fleet.shards]


@pytest.mark.parametrize("piece_routes", [1000, 3])
def test_a_replica_refutes_a_shard_which_is_passed_over_from_then_on(fleet, piece_routes: int) -> None:
    replicated(fleet)
    wrong, right = fleet.shards
    wrong.broken_experts = set(range(E))
    wrong.piece_routes = right.piece_routes = piece_routes
    dispatch, expected = ask(fleet, torch.randn(5, H).bfloat16())
    assert torch.equal(fleet.outcome(dispatch), expected)
    assert not dispatch.faults
    assert fleet.router.quarantined == [wrong.address]
    before = asked_of(fleet)[0]
    for _ in range(3):
        dispatch, expected = ask(fleet, torch.randn(5, H).bfloat16())
        assert torch.equal(fleet.outcome(dispatch), expected)
    assert asked_of(fleet)[0] == before
    assert fleet.router.counters.faulty_rows == 0


def test_who_is_quarantined_still_answers_what_nobody_else_holds(fleet) -> None:
    fleet.add_shards(2)
    fleet.commit(lambda layer, expert: [0, 1] if expert < 4 else [0])
    assert fleet.wait_all_up()
    fleet.shards[0].broken_experts = {0, 1, 2, 3}
    dispatch, expected = ask(fleet, torch.randn(1, H).bfloat16())
    assert torch.equal(fleet.outcome(dispatch), expected)
    dispatch, expected = ask(fleet, torch.randn(1, H).bfloat16())
    assert torch.equal(fleet.outcome(dispatch), expected)
    assert set(fleet.shards[0].frames[-1].route_experts.tolist()) == {4, 5, 6, 7}


def test_a_new_process_in_the_seat_is_trusted_again(fleet) -> None:
    replicated(fleet)
    fleet.shards[0].broken_experts = set(range(E))
    fleet.outcome(ask(fleet, torch.randn(2, H).bfloat16())[0])
    assert fleet.router.quarantined
    fleet.io.submit(fleet.shards[0].stop())
    fleet.shards[0] = fleet.io.submit(fleet._make("expert-0"))
    fleet.commit(lambda layer, expert: [0, 1])
    assert fleet.wait_all_up()
    assert not fleet.router.quarantined


def test_when_a_replica_says_the_same_only_that_row_is_lost_and_nobody_is_blamed(fleet) -> None:
    replicated(fleet)
    for shard in fleet.shards:
        shard.broken_experts = {0}  # asked by row 0 alone
    dispatch, expected = ask(fleet, torch.randn(5, H).bfloat16())
    found = fleet.outcome(dispatch)
    assert torch.equal(found[1:], expected[1:])
    assert not found[0].any()
    assert {row: fault.code for row, fault in dispatch.faults.items()} == {0: Code.NON_FINITE}
    assert "a second replica says the same" in str(dispatch.faults[0])
    assert not fleet.router.quarantined
    assert fleet.router.counters.faulty_rows == 1


def test_without_a_replica_only_that_row_is_lost(fleet) -> None:
    replicated(fleet, 1)
    fleet.shards[0].broken_experts = {0}
    dispatch, expected = ask(fleet, torch.randn(5, H).bfloat16())
    assert torch.equal(fleet.outcome(dispatch)[1:], expected[1:])
    assert list(dispatch.faults) == [0]
    assert "no second replica" in str(dispatch.faults[0])
    assert not fleet.router.quarantined


def test_a_row_that_was_not_finite_when_it_was_sent_is_asked_of_nobody_else(fleet) -> None:
    replicated(fleet)
    x = torch.randn(5, H).bfloat16()
    x[3, 1] = float("nan")
    dispatch, expected = ask(fleet, x)
    before = asked_of(fleet)
    found = fleet.outcome(dispatch)
    assert torch.equal(found[[0, 1, 2, 4]], expected[[0, 1, 2, 4]])
    assert list(dispatch.faults) == [3]
    assert "hidden row is not finite" in str(dispatch.faults[3])
    assert sum(asked_of(fleet)) <= max(2, sum(before))
    assert not fleet.router.quarantined


def test_a_suspected_replica_is_good_enough_for_a_second_answer(fleet) -> None:
    replicated(fleet)
    fleet.shards[0].broken_experts = set(range(E))
    suspected = next(lane for lane in fleet.router._lanes.values() if lane.seat == "expert-1")
    suspected.suspect()
    dispatch, expected = ask(fleet, torch.randn(5, H).bfloat16())
    assert torch.equal(fleet.outcome(dispatch), expected)
    assert fleet.router.quarantined == [fleet.shards[0].address]


@pytest.mark.parametrize("third", [True, False])
def test_a_replica_that_refuses_leaves_the_second_answer_to_a_third(fleet, third: bool) -> None:
    replicated(fleet, 3 if third else 2)
    wrong, refusing, *_ = fleet.shards
    wrong.broken_experts = set(range(E))
    refusing.refuse = FleetError(Code.OVERLOADED, "no")
    for lane in fleet.router._lanes.values():
        if lane.seat != wrong.seat:
            lane.suspect()
    dispatch, expected = ask(fleet, torch.randn(5, H).bfloat16())
    found = fleet.outcome(dispatch, 2.0)
    if third:
        assert torch.equal(found, expected)
        assert fleet.router.quarantined == [wrong.address]
    else:
        assert list(dispatch.faults) == [0, 1, 2, 3, 4]
        assert not fleet.router.quarantined


def test_a_second_answer_that_never_comes_costs_its_rows_alone() -> None:
    fleet = test_router.Fleet(deadline_s=0.5)
    replicated(fleet)
    silent = fleet.shards[1]
    fleet.shards[0].broken_experts = {0}
    silent.pause.clear()
    next(lane for lane in fleet.router._lanes.values() if lane.seat == silent.seat).suspect()
    dispatch, expected = ask(fleet, torch.randn(5, H).bfloat16())
    found = fleet.outcome(dispatch, 3.0)
    assert torch.equal(found[1:], expected[1:])
    assert list(dispatch.faults) == [0]
    fleet.io.post(silent.pause.set)
    fleet.close()
