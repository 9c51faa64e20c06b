"""The gate selects as DeepSeek-V3's does and treats every row alike."""

import pytest
import torch

from expertfleet.kernels import native, top_k_gate
from expertfleet.kernels.batch_invariant_linear import BatchInvariantScores
from expertfleet.kernels.row_rule import RuleCache, bits_of
from expertfleet.kernels.top_k_gate import TopKGate
from expertfleet.router.dispatch.gate import Gate


def make_gate(E: int, H: int, K: int, groups: int = 1, kept: int = 1) -> tuple[Gate, torch.Tensor, torch.Tensor]:
    weight, bias = torch.randn(E, H) / H**0.5, torch.randn(E) * 0.1

    def by_row(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([row @ weight.T for row in x.split(1)])

    return Gate(by_row, bias, TopKGate(K, groups, kept, True, 2.827)), weight, bias


def test_weights_are_unbiased_normalised_and_in_rank_order() -> None:
    gate, weight, bias = make_gate(64, 32, 8)
    x = torch.randn(50, 32)
    ids, weights = gate(x)
    scores = torch.sigmoid(x.double() @ weight.double().T)
    expected = (scores + bias).topk(8).indices
    assert torch.equal(ids, expected)
    picked = scores.gather(1, expected)
    torch.testing.assert_close(weights.double(), 2.827 * picked / picked.sum(1, keepdim=True), atol=1e-5, rtol=0)


def test_only_the_best_groups_are_chosen_from() -> None:
    gate, weight, bias = make_gate(32, 16, 4, groups=8, kept=2)
    x = torch.randn(40, 16)
    ids, _ = gate(x)
    biased = (torch.sigmoid(x @ weight.T) + bias).view(40, 8, 4)
    best = biased.topk(2, dim=-1).values.sum(-1).topk(2, dim=-1).indices
    for row in range(40):
        assert set((ids[row] // 4).tolist()) <= set(best[row].tolist())


def test_a_row_does_not_see_its_neighbours() -> None:
    for E in (72, 384):
        gate, _, _ = make_gate(E, 24, 8)
        x = torch.randn(500, 24)
        ids, weights = gate(x)
        for start, stop in ((0, 1), (17, 18), (3, 140), (256, 500)):
            some_ids, some_weights = gate(x[start:stop])
            assert torch.equal(some_ids, ids[start:stop])
            assert torch.equal(some_weights, weights[start:stop])


@pytest.mark.parametrize(("E", "K", "groups", "kept"), [(384, 8, 1, 1), (64, 6, 8, 3), (30, 1, 5, 1), (8, 8, 1, 1)])
def test_the_compiled_choice_is_torchs(E: int, K: int, groups: int, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if isinstance(native.load(), str):
        pytest.skip("the native kernel was not built")
    gate, _, _ = make_gate(E, 24, K, groups, kept)
    x = torch.randn(300, 24) * 10 ** torch.empty(300, 1).uniform_(-2, 1.3)
    ids, weights = gate(x)
    with monkeypatch.context() as patch:
        patch.setattr(top_k_gate, "load", lambda: "not here")
        wanted_ids, wanted = gate(x)
    same = (ids == wanted_ids).all(1)  # scores that differ in the last bit, or not at all, may change places
    assert same.float().mean() > 0.9
    torch.testing.assert_close(weights[same], wanted[same], atol=1e-30, rtol=2e-6)
    assert all(len(set(row)) == K for row in ids.tolist())


def test_a_row_that_is_not_finite_gets_no_finite_weights() -> None:
    gate, _, _ = make_gate(64, 24, 8)
    x = torch.randn(3, 24)
    x[1] = float("nan")
    ids, weights = gate(x)
    assert weights.isnan().all(1).tolist() == [False, True, False]
    assert all(len(set(row)) == 8 for row in ids.tolist())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("E", "K", "groups", "kept"), [(384, 8, 1, 1), (64, 6, 8, 3)])
def test_products_and_choice_in_one_call_are_those_of_two(
    dtype: torch.dtype, E: int, K: int, groups: int, kept: int
) -> None:
    if isinstance(native.load(), str):
        pytest.skip("the native kernel was not built")
    scores, bias = BatchInvariantScores(torch.randn(E, 2080).bfloat16(), RuleCache()), torch.randn(E) * 0.1
    chosen = TopKGate(K, groups, kept, True, 2.827)
    gate = Gate(scores, bias, chosen)
    for T in (0, 1, 3, 40, 400):  # the last ones on several threads
        x = torch.randn(2 * T, 2080).to(dtype)[::2]
        ids, weights = gate(x)
        expected_ids, expected_weights = chosen(scores(x), bias)
        assert torch.equal(ids, expected_ids)
        assert torch.equal(bits_of(weights), bits_of(expected_weights))
    with pytest.raises(AssertionError, match="wanted"):
        gate(torch.randn(2, 2048).to(dtype))
