"""The combine is a sum in rank order whose bits do not depend on the batch."""

import random

import numpy as np
import pytest
import torch

from expertfleet.kernels import native
from expertfleet.kernels.row_rule import bits_of
from expertfleet.proto.rows import Rows
from expertfleet.router import combine as combine_module
from expertfleet.router.combine import Answers, combine


def test_equals_the_rank_order_sum_bit_for_bit() -> None:
    for dtype in (torch.bfloat16, torch.float32):
        rows, weights = torch.randn(70, 8, 96).to(dtype), torch.rand(70, 8)
        expected = torch.zeros(70, 96)
        for k in range(8):
            expected = (
                expected + rows[:, k].float() * weights[:, k : k + 1] if k else rows[:, 0].float() * weights[:, 0:1]
            )
        assert torch.equal(combine(rows, weights), expected)


def test_a_row_does_not_see_its_neighbours() -> None:
    rows, weights = torch.randn(100, 8, 7168).bfloat16(), torch.rand(100, 8)
    whole = combine(rows, weights)
    for start, stop in ((0, 1), (31, 33), (99, 100), (5, 80)):
        assert torch.equal(combine(rows[start:stop], weights[start:stop]), whole[start:stop])


def test_close_to_float64() -> None:
    rows, weights = torch.randn(9, 8, 64), torch.rand(9, 8)
    expected = (rows.double() * weights.double().unsqueeze(-1)).sum(1)
    torch.testing.assert_close(combine(rows, weights).double(), expected, atol=1e-5, rtol=1e-5)


@pytest.fixture(params=["native", "torch"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr(combine_module, "load", lambda: "not here")
    elif isinstance(native.load(), str):
        pytest.skip("the native kernel was not built")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("tokens", "top_k", "hidden"), [(1, 8, 7168), (70, 8, 96), (3, 1, 5000), (300, 6, 1000)])
def test_pieces_in_any_order_give_the_bits_of_the_whole(
    kernel: None, dtype: torch.dtype, tokens: int, top_k: int, hidden: int
) -> None:
    rows, weights = torch.randn(tokens, top_k, hidden).to(dtype), torch.rand(tokens, top_k)
    routes = torch.randperm(tokens * top_k)
    cuts = sorted(random.sample(range(1, tokens * top_k), min(5, tokens * top_k - 1)))
    answers = Answers(weights, hidden, dtype)
    for part in routes.tensor_split(cuts):
        answers.add(part.numpy(), Rows.of(rows.view(-1, hidden)[part]))
    found, is_finite = answers.combined()
    assert is_finite
    assert torch.equal(bits_of(found), bits_of(combine(rows, weights)))


def test_what_is_not_finite_stays_so(kernel: None) -> None:
    rows, weights = torch.randn(4, 8, 64), torch.rand(4, 8)
    rows[1, 3, 5], rows[2, 0, 6] = float("nan"), float("inf")
    answers = Answers(weights, 64, torch.float32)
    answers.add(np.arange(32), Rows.of(rows.view(32, 64)))
    found, is_finite = answers.combined()
    assert not is_finite
    assert (~found.isfinite()).nonzero().tolist() == [[1, 5], [2, 6]]


def test_the_last_row_of_a_route_counts(kernel: None) -> None:
    first, second = torch.randn(6, 64), torch.randn(2, 64)
    answers = Answers(torch.ones(3, 2), 64, torch.float32)
    answers.add(np.arange(6), Rows.of(first))
    assert torch.equal(answers.combined()[0], first[::2] + first[1::2])
    answers.add(np.array([1, 4]), Rows.of(second))
    expected = torch.stack([first[0] + second[0], first[2] + first[3], second[1] + first[5]])
    assert torch.equal(answers.combined()[0], expected)
