import time

import numpy as np
import pytest

from expertfleet.router.placement import place

SHAPES = [(1, 1, 0), (3, 7, 1), (4, 64, 1), (6, 13, 2), (5, 10, 0)]


@pytest.mark.parametrize(("num_layers", "num_experts", "num_dense"), SHAPES)
@pytest.mark.parametrize("num_shards", [1, 2, 3, 5, 8, 13, 31])
@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_every_expert_has_its_copies_and_shards_are_even(
    num_layers: int, num_experts: int, num_dense: int, num_shards: int, replicas: int
) -> None:
    replicas = min(replicas, num_shards)
    placement = place(num_layers, num_experts, num_dense, num_shards, replicas)
    assert placement.shape == (num_shards, num_layers, num_experts)
    copies = placement.sum(axis=0)
    assert (copies[num_dense:] == replicas).all()
    assert not placement[:, :num_dense].any()
    in_layer = placement.sum(axis=2)
    assert np.ptp(in_layer, axis=0).max() <= 1
    assert np.ptp(in_layer.sum(axis=1)) <= 1


def test_the_same_question_has_the_same_answer() -> None:
    assert np.array_equal(place(5, 48, 1, 7, 2), place(5, 48, 1, 7, 2))


def test_the_loss_of_a_shard_is_shared_by_many_others() -> None:
    placement = place(9, 64, 1, 8, 2)
    lost = placement[3]
    takers = [int((placement[shard] & lost).sum()) for shard in range(8) if shard != 3]
    assert sum(takers) == lost.sum()
    assert max(takers) <= 2 * min(takers)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, 8, 1, 2, 3), "replicas: 3, must lie between 1 and the number of expert shards 2"),
        ((4, 8, 1, 2, 0), "replicas: 0, must lie between 1"),
        ((4, 8, 1, 0, 1), "expert_shards: 0, must be at least 1"),
        ((4, 0, 1, 2, 1), "num_experts: 0, must be at least 1"),
        ((4, 8, 5, 2, 1), "num_dense_layers: 5, must lie between 0 and num_layers 4"),
    ],
)
def test_an_impossible_wish_names_value_and_limit(arguments: tuple[int, int, int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        place(*arguments)


def test_a_model_of_full_size_is_placed_in_seconds() -> None:
    began = time.monotonic()
    place(61, 384, 1, 96, 2)
    assert time.monotonic() - began < 10
