from dataclasses import replace

import clusters
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expertfleet.router.placement.placement import Shard, place


def check_everything(seed: int) -> None:
    """One random cluster through a shard's loss, new loads and foreign store."""
    cluster, rng = clusters.draw(seed), np.random.default_rng(seed)
    shards, wanted = cluster.shards, cluster.wanted
    placement = cluster.place()
    clusters.check(shards, wanted, placement)
    survives = cluster.replicas >= 2 and clusters.can_survive(shards, int(wanted.sum()))
    if survives:
        assert placement.coverage() == 1.0, "a domain's loss would lose experts"

    loaded = clusters.holding(shards, placement.held)
    assert cluster.place(loaded).moved == 0, "nothing changed and something moved"
    assert np.array_equal(cluster.place(loaded, max_moves=0).held, placement.held), "copies lost for want of moves"

    order = rng.permutation(len(shards)).tolist()
    shuffled = cluster.place([shards[index] for index in order])
    for place_in_order, index in enumerate(order):
        assert np.array_equal(shuffled.held[place_in_order], placement.held[index])

    gone = int(rng.integers(len(shards)))
    rest = [shard for index, shard in enumerate(loaded) if index != gone]
    left = np.any([shard.held for shard in rest], axis=0) if rest else np.zeros_like(wanted)
    if rest:
        repaired = cluster.place(rest, max_moves=0)
        clusters.check(rest, wanted, repaired)
        assert repaired.moved <= (placement.held[gone] & ~left).sum()
        clusters.check(rest, wanted, cluster.place(rest))

    drifted, most = replace(cluster, loads=rng.lognormal(0, 1, wanted.shape)), int(rng.integers(10))
    moved = drifted.place(loaded, max_moves=most)
    clusters.check(loaded, wanted, moved)
    assert moved.moved <= most + placement.uncovered.sum()

    foreign = clusters.holding(shards, [rng.random(wanted.shape) < 0.3 for _ in shards])
    sorted_out = cluster.place(foreign)
    clusters.check(foreign, wanted, sorted_out)
    assert not survives or sorted_out.coverage() == 1.0
    assert cluster.place(clusters.holding(shards, sorted_out.held)).moved == 0


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_any_small_cluster_is_placed_as_promised(seed: int) -> None:
    check_everything(seed)


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.skipif("not config.getoption('--placements')", reason="takes minutes; --placements 10000")
def test_thousands_of_small_clusters_are_placed_as_promised(request: pytest.FixtureRequest) -> None:
    for seed in range(request.config.getoption("--placements")):
        check_everything(seed)


def equal_shards(count: int) -> list[Shard]:
    return [Shard(f"expert-{number}", 10_000) for number in range(count)]


@given(st.integers(2, 9), st.integers(1, 3), st.integers(1, 40), st.sampled_from([1, 2, 3]))
@settings(max_examples=40, deadline=None)
def test_a_shard_that_leaves_costs_what_it_held(
    num_shards: int, num_layers: int, num_experts: int, replicas: int
) -> None:
    wanted = np.ones((num_layers, num_experts), dtype=np.bool_)
    shards = equal_shards(num_shards)
    before = place(shards, wanted, replicas)
    rest = clusters.holding(shards, before.held)[1:]
    after = place(rest, wanted, replicas)
    lost = before.held[0].sum() if num_shards > replicas else 0
    # With several copies, those of the lost shard may lie so that counts cannot stay level without a little more.
    assert lost <= after.moved <= lost + (0 if replicas == 1 else num_layers + lost // 8)
    assert not after.uncovered.any()
    counts = np.array([mask.sum(1) for mask in after.held])
    assert np.ptp(counts, axis=0).max() <= 1


@given(st.integers(1, 9), st.integers(1, 3), st.integers(1, 40), st.sampled_from([1, 1.25, 1.5, 2]))
@settings(max_examples=40, deadline=None)
def test_a_shard_that_joins_takes_its_fair_share(
    num_shards: int, num_layers: int, num_experts: int, replicas: float
) -> None:
    wanted = np.ones((num_layers, num_experts), dtype=np.bool_)
    shards = equal_shards(num_shards)
    before = place(shards, wanted, replicas)
    joined = [*clusters.holding(shards, before.held), Shard("newcomer", 10_000)]
    after = place(joined, wanted, replicas)
    copies, earlier = sum(mask.sum() for mask in after.held), sum(mask.sum() for mask in before.held)
    fair = num_layers * -(-copies // (num_layers * (num_shards + 1)))
    assert after.moved <= fair + (copies - earlier)
    assert np.ptp([mask.sum(1) for mask in after.held], axis=0).max() <= 1
