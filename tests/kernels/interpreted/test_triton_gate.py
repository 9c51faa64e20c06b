import pytest
import torch

from expertfleet.kernels.row_rule import bits_of
from expertfleet.kernels.top_k_gate import TopKGate
from expertfleet.kernels.triton_gate import gate_top_k, gate_top_k_reference
from expertfleet.router.dispatch.gate import Gate


@pytest.mark.parametrize(("tokens", "experts", "hidden"), [(1, 48, 64), (9, 30, 600)])
def test_the_gate_matches_its_reference_and_the_router_s(tokens: int, experts: int, hidden: int) -> None:
    x, weight = torch.randn(tokens, hidden).bfloat16(), (torch.randn(experts, hidden) / hidden**0.5).bfloat16()
    bias = torch.randn(experts) / 10
    ids, weights = gate_top_k(x, weight, bias, 8, True, 2.827)
    wanted_ids, wanted_weights = gate_top_k_reference(x, weight, bias, 8, True, 2.827)
    router = Gate(lambda rows: rows.float() @ weight.float().t(), bias, TopKGate(8, scaling_factor=2.827))
    router_ids, router_weights = router(x)
    assert torch.equal(ids, wanted_ids)
    assert torch.equal(ids.long(), router_ids)
    assert torch.allclose(weights, wanted_weights, rtol=1e-5, atol=0)
    assert torch.allclose(weights, router_weights, rtol=1e-5, atol=0)


def test_equal_scores_go_to_the_smaller_id() -> None:
    x, weight = torch.randn(2, 64).bfloat16(), torch.zeros(20, 64).bfloat16()
    bias = torch.zeros(20)
    bias[[3, 17]] = 0.25
    ids, weights = gate_top_k(x, weight, bias, 4, False, 1.0)
    assert ids.tolist() == [[3, 17, 0, 1]] * 2
    assert torch.equal(weights, torch.full((2, 4), 0.5))


def test_a_row_s_choice_never_depends_on_the_others() -> None:
    x, weight = torch.randn(12, 64).bfloat16(), torch.randn(16, 64).bfloat16()
    bias = torch.randn(16)
    ids, weights = gate_top_k(x, weight, bias, 3, True, 1.0)  # programs of 32 rows
    for rows in (slice(0, 1), slice(4, 11)):  # programs of 8
        some_ids, some_weights = gate_top_k(x[rows], weight, bias, 3, True, 1.0)
        assert torch.equal(some_ids, ids[rows])
        assert torch.equal(bits_of(some_weights), bits_of(weights[rows]))


def test_no_rows_give_nothing() -> None:
    ids, weights = gate_top_k(
        torch.empty(0, 64).bfloat16(), torch.zeros(16, 64).bfloat16(), torch.zeros(16), 2, True, 1.0
    )
    assert ids.shape == weights.shape == (0, 2)
