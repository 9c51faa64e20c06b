"""The plan finds live replicas, evens out activated experts, and never mixes numerics classes."""

import random

import numpy as np
import pytest
import torch

from expertfleet.kernels import native
from expertfleet.membership.epoch import EpochId, ExpertSet, Member
from expertfleet.router.dispatch import routing_table as plan_module
from expertfleet.router.dispatch.routing_table import NO_HOLDER, RoutingTable, choose_replicas


def member(seat: int, held: np.ndarray, numerics: str = "a") -> Member:
    return Member(f"expert-{seat}", f"127.0.0.1:{seat}", numerics, ExpertSet.from_mask(held))


def random_members(rng: random.Random, shards: int, replicas: int, E: int = 16) -> tuple[Member, ...]:
    masks = [np.zeros((3, E), dtype=bool) for _ in range(shards)]
    for layer in (1, 2):
        for expert in range(E):
            for shard in rng.sample(range(shards), replicas):
                masks[shard][layer, expert] = True
    return tuple(member(number, mask) for number, mask in enumerate(masks))


def test_every_route_goes_to_a_holder() -> None:
    rng = random.Random()
    for replicas in (1, 2, 3):
        members = random_members(rng, 4, replicas)
        plan = RoutingTable(EpochId(1, 1), members, {each.seat for each in members})
        assert plan.covers_everything()
        experts = torch.tensor([rng.randrange(16) for _ in range(100)])
        owners = plan.assign(2, experts)
        for expert in experts.tolist():
            assert members[owners[expert]].held.holds(2, expert)


def test_lost_and_excluded_seats_get_nothing() -> None:
    members = random_members(random.Random(), 4, 2)
    plan = RoutingTable(EpochId(1, 1), members, {"expert-0", "expert-1", "expert-2"})
    experts = torch.arange(16)
    assert 3 not in plan.assign(1, experts)
    owners = plan.assign(1, experts, {"expert-0"})
    assert not {0, 3} & set(owners.tolist())
    only_lost = [e for e in range(16) if not any(members[s].held.holds(1, e) for s in (1, 2))]
    assert all(owners[e] == NO_HOLDER for e in only_lost)


def test_one_lost_replica_of_one_leaves_a_hole() -> None:
    members = random_members(random.Random(), 3, 1)
    plan = RoutingTable(EpochId(1, 1), members, {"expert-0", "expert-1"})
    assert plan.covers_everything() == (not members[2].held.count)
    lost = [expert for expert in range(16) if members[2].held.holds(1, expert)]
    assert (plan.assign(1, torch.arange(16)) == NO_HOLDER).nonzero()[:, 0].tolist() == lost


def test_the_compiled_choice_is_numpys(monkeypatch: pytest.MonkeyPatch) -> None:
    if isinstance(native.load(), str):
        pytest.skip("the native kernel was not built")
    rng = np.random.default_rng()
    for _ in range(300):
        num_shards, num_experts, num_routes = rng.integers(1, 20), rng.integers(1, 90), rng.integers(1, 200)
        replicas = rng.random((num_shards, 3, num_experts)) < rng.random()
        experts = torch.from_numpy(rng.integers(0, num_experts, num_routes))
        compiled = choose_replicas(replicas[:, 1], experts)
        with monkeypatch.context() as patch:
            patch.setattr(plan_module, "load", lambda: "not here")
            assert compiled.tolist() == choose_replicas(replicas[:, 1], experts).tolist()
    with pytest.raises(IndexError, match=r"an expert of \[0, 9\] is not below 9"):
        choose_replicas(np.ones((2, 9), dtype=bool), torch.tensor([0, 9]))


def test_spread_evens_out_activated_experts_not_tokens() -> None:
    replicas = np.ones((4, 64), dtype=bool)
    experts = torch.cat([torch.zeros(1000, dtype=torch.int64), torch.arange(1, 40)])
    owners = choose_replicas(replicas, experts)
    activated = owners[:40].bincount(minlength=4)
    assert activated.max() - activated.min() <= 1
    assert (owners[40:] == NO_HOLDER).all()


def test_replicas_of_another_class_are_left_out() -> None:
    full = np.ones((2, 4), dtype=bool)
    members = (member(0, full, "avx"), member(1, full, "amx"))
    both = RoutingTable(EpochId(1, 1), members, {"expert-0", "expert-1"})
    assert both.assign(1, torch.arange(4)).tolist() == [0, 0, 0, 0]
    lost = RoutingTable(EpochId(1, 1), members, {"expert-1"})
    assert (lost.assign(1, torch.arange(4)) == NO_HOLDER).all()


def test_no_members_no_owner() -> None:
    plan = RoutingTable(EpochId(0, 0), (), ())
    assert not plan.covers_everything()
    assert (plan.assign(1, torch.arange(4)) == NO_HOLDER).all()


def test_an_expert_keeps_its_class_while_somebody_of_it_holds_it_or_nobody_does() -> None:
    full = np.ones((2, 4), dtype=bool)
    first = RoutingTable(EpochId(1, 1), (member(1, full, "b"),), {"expert-1"})
    assert first.numerics == "b"
    joined = RoutingTable(
        EpochId(1, 2), (member(0, full, "a"), member(1, full, "b")), {"expert-0", "expert-1"}, before=first
    )
    assert joined.numerics == "b"
    assert joined.assign(1, torch.arange(4)).tolist() == [1, 1, 1, 1]
    half = full.copy()
    half[:, 2:] = False
    lost = RoutingTable(EpochId(1, 3), (member(1, half, "b"),), {"expert-1"}, before=joined)
    assert lost.numerics == "b"
    mixed = RoutingTable(
        EpochId(1, 4), (member(0, ~half, "a"), member(1, half, "b")), {"expert-0", "expert-1"}, before=lost
    )
    assert mixed.assign(1, torch.arange(4)).tolist() == [1, 1, 0, 0]
    assert mixed.numerics.startswith("a+b#")
    swapped = RoutingTable(EpochId(1, 5), (member(0, half, "a"), member(1, ~half, "b")), {"expert-0", "expert-1"})
    assert swapped.numerics.startswith("a+b#")
    assert swapped.numerics != mixed.numerics


def test_bits_are_numbered_anew_when_the_class_changes_and_only_then() -> None:
    held = np.ones((2, 4), dtype=bool)
    one, two, other = member(0, held), member(1, held), member(2, held, "b")
    first = RoutingTable(EpochId(1, 1), (one,), {"expert-0"})
    same = RoutingTable(EpochId(1, 2), (one, two), {"expert-0", "expert-1"}, first)
    changed = RoutingTable(EpochId(1, 3), (other,), {"expert-2"}, same)
    back = RoutingTable(EpochId(1, 4), (one,), {"expert-0"}, changed)
    assert [plan.numerics_generation for plan in (first, same, changed, back)] == [0, 0, 1, 2]
