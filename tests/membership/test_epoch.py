import random

import numpy as np
import pytest

from expertfleet.membership.epoch import NO_EPOCH, Epoch, EpochId, ExpertSet, Member
from expertfleet.proto.errors import Code, FleetError
from expertfleet.proto.generated import membership_pb2 as pb


def random_set(rng: np.random.Generator, num_layers: int, num_experts: int) -> ExpertSet:
    return ExpertSet.from_mask(rng.random((num_layers, num_experts)) < 0.4)


def test_a_later_incarnation_beats_any_counter() -> None:
    ids = [EpochId(2, 1), EpochId(1, 9), NO_EPOCH, EpochId(2, 0), EpochId(1, 1)]
    random.Random(3).shuffle(ids)
    assert sorted(ids) == [NO_EPOCH, EpochId(1, 1), EpochId(1, 9), EpochId(2, 0), EpochId(2, 1)]


@pytest.mark.parametrize(("num_layers", "num_experts"), [(0, 0), (1, 1), (3, 7), (4, 8), (5, 9), (61, 384)])
def test_expert_sets_survive_the_wire(num_layers: int, num_experts: int) -> None:
    original = random_set(np.random.default_rng(num_experts), num_layers, num_experts)
    restored = ExpertSet.from_proto(pb.ExpertSet.FromString(original.to_proto().SerializeToString()))
    assert restored == original
    assert hash(restored) == hash(original)
    assert restored.pairs() == [(layer, e) for layer in range(num_layers) for e in original.experts(layer)]
    assert len(original.to_proto().bits) == num_layers * ((num_experts + 7) // 8)


def test_the_least_significant_bit_is_expert_zero() -> None:
    message = ExpertSet.from_pairs([(0, 0), (1, 8)], 2, 9).to_proto()
    assert message.bits == bytes([1, 0, 0, 1])


def test_bits_of_the_wrong_length_are_refused_with_the_numbers() -> None:
    with pytest.raises(FleetError, match=r"ExpertSet.bits: 3 bytes, 2 layers × 9 experts need 4 bytes") as caught:
        ExpertSet.from_proto(pb.ExpertSet(num_layers=2, num_experts=9, bits=b"abc"))
    assert caught.value.code is Code.BAD_REQUEST


def test_holds_answers_no_outside_the_grid() -> None:
    held = ExpertSet.full(3, 4, num_dense_layers=1)
    assert held.count == 8
    assert not held.holds(0, 0)
    assert held.holds(1, 3)
    assert not held.holds(1, 4)
    assert not held.holds(3, 0)
    assert not held.holds(-1, 0)
    assert held.experts(0) == ()
    assert held.experts(2) == (0, 1, 2, 3)


def test_a_pair_outside_the_grid_is_an_error() -> None:
    with pytest.raises(ValueError, match="layer 3, expert 0 lies outside 3 layers × 4 experts"):
        ExpertSet.from_pairs([(3, 0)], 3, 4)


def test_a_set_cannot_be_changed_through_its_mask_or_its_source() -> None:
    source = np.zeros((2, 2), dtype=np.bool_)
    held = ExpertSet.from_mask(source)
    source[0, 0] = True
    assert held.count == 0
    with pytest.raises(ValueError, match="read-only"):
        held.mask[0, 0] = True


def test_epochs_survive_the_wire_and_compare_by_content() -> None:
    rng = np.random.default_rng(5)
    experts = tuple(
        Member(f"expert-{i}", f"127.0.0.1:{5000 + i}", "avx512-a", random_set(rng, 4, 11)) for i in range(3)
    )
    attention = (Member("attention-0", "127.0.0.1:6000", "avx512-a", max_model_len=4096),)
    epoch = Epoch(EpochId(7, 8), "ab" * 32, "bfloat16", experts, attention, complete=True)
    restored = Epoch.from_proto(pb.Epoch.FromString(epoch.to_proto().SerializeToString()))
    assert restored == epoch
    assert epoch.same_members(Epoch(EpochId(7, 9), "ab" * 32, "bfloat16", experts, attention, complete=True))
    assert not epoch.same_members(Epoch(EpochId(7, 8), "ab" * 32, "bfloat16", experts[:2], attention, complete=True))
