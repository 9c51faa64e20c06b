"""The combine is a sum in rank order whose bits do not depend on the batch."""

import torch

from expertfleet.router.combine import combine


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
