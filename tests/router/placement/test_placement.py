from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from expertfleet.router.placement.placement import Placement, Shard, place

SHAPES = [(1, 1, 0), (3, 7, 1), (4, 64, 1), (6, 13, 2), (5, 10, 0)]


def grid(num_layers: int, num_experts: int, num_dense: int = 0) -> npt.NDArray[np.bool_]:
    wanted = np.ones((num_layers, num_experts), dtype=np.bool_)
    wanted[:num_dense] = False
    return wanted


def equal_shards(count: int, capacity: int = 1 << 20) -> list[Shard]:
    return [Shard(f"expert-{number}", capacity) for number in range(count)]


def holding(shards: Sequence[Shard], placement: Placement) -> list[Shard]:
    """The same shards after they have loaded ``placement``."""
    return [
        Shard(shard.seat, shard.capacity, shard.speed, shard.numerics, shard.domain, held)
        for shard, held in zip(shards, placement.held, strict=True)
    ]


@pytest.mark.parametrize(("num_layers", "num_experts", "num_dense"), SHAPES)
@pytest.mark.parametrize("num_shards", [1, 2, 3, 5, 8, 13, 31])
@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_every_expert_has_its_copies_and_shards_are_even(
    num_layers: int, num_experts: int, num_dense: int, num_shards: int, replicas: int
) -> None:
    replicas = min(replicas, num_shards)
    placement = place(equal_shards(num_shards), grid(num_layers, num_experts, num_dense), replicas)
    held = np.stack(placement.held)  # [S, L, E]
    copies = held.sum(axis=0)
    assert (copies[num_dense:] == replicas).all()
    assert not held[:, :num_dense].any()
    in_layer = held.sum(axis=2)
    assert np.ptp(in_layer, axis=0).max() <= 1
    assert np.ptp(in_layer.sum(axis=1)) <= 1
    assert placement.moved == copies.sum()
    assert not placement.uncovered.any()


def test_the_loss_of_a_shard_is_shared_by_many_others() -> None:
    held = place(equal_shards(8), grid(9, 64, 1), 2).held
    takers = [int((held[shard] & held[3]).sum()) for shard in range(8) if shard != 3]
    assert sum(takers) == held[3].sum()
    assert max(takers) <= 2 * min(takers)


def test_nothing_moves_where_nothing_changed() -> None:
    shards, wanted = equal_shards(5), grid(4, 24, 1)
    first = place(shards, wanted, 1.5)
    again = place(holding(shards, first), wanted, 1.5)
    assert again.moved == 0
    assert np.array_equal(np.stack(again.held), np.stack(first.held))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"replicas": 0.5}, "replicas: 0.5, must be a finite number of at least 1"),
        ({"replicas": float("nan")}, "replicas: nan, must be"),
        ({"wanted": np.ones(8, dtype=np.bool_)}, r"wanted: shape \(8,\), must be \[num_layers, num_experts\]"),
        ({"loads": np.ones((2, 4))}, r"loads: shape \(2, 4\), must be that of wanted, \(2, 8\)"),
        ({"loads": np.full((2, 8), -1.0)}, "loads: -1.0 to -1.0, must be finite and at least 0"),
        ({"loads": np.full((2, 8), np.inf)}, "loads: inf to inf, must be finite"),
        ({"max_moves": -1}, "max_moves: -1, must be at least 0"),
        ({"objective": "beauty"}, "objective: 'beauty', must be 'activated' or 'tokens'"),
        ({"shards": [Shard("a", 1), Shard("a", 1)]}, "shards: seat 'a' twice"),
        ({"shards": [Shard("a", -1)]}, "capacity: -1 of a, must be at least 0"),
        ({"shards": [Shard("a", 1, speed=0.0)]}, "speed: 0.0 of a, must be a finite number above 0"),
        ({"shards": [Shard("a", 1, held=grid(2, 4))]}, r"held: shape \(2, 4\) of a, must be that of wanted, \(2, 8\)"),
    ],
)
def test_an_impossible_wish_names_value_and_limit(change: dict[str, Any], message: str) -> None:
    asked: dict[str, Any] = {"shards": equal_shards(2), "wanted": grid(2, 8)} | change
    with pytest.raises(ValueError, match=message):
        place(**asked)
