import pytest
import torch

from expertfleet.kernels.row_rule import bits_of
from expertfleet.kernels.triton_rows import combine_rows, combine_rows_reference, gather_rows, scatter_rows
from expertfleet.router.dispatch.combine import combine


@pytest.mark.parametrize("hidden", [32, 1056])
def test_gather_and_scatter_move_rows(hidden: int) -> None:
    x = torch.randn(5, hidden).bfloat16()
    places = torch.tensor([4, 0, 3, 1, 2], dtype=torch.int32)
    gathered = gather_rows(x, places)
    assert torch.equal(bits_of(gathered), bits_of(x[places.long()]))
    back = torch.zeros_like(x)
    scatter_rows(gathered, places, back)
    assert torch.equal(bits_of(back), bits_of(x))
    assert gather_rows(x, places[:0]).shape == (0, hidden)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("top_k", [1, 3, 8])
def test_combine_gives_the_router_s_bits(dtype: torch.dtype, top_k: int) -> None:
    rows, weights = torch.randn(3 * top_k, 1056).to(dtype), torch.rand(3, top_k)
    sums = combine_rows(rows, weights)
    assert torch.equal(bits_of(sums), bits_of(combine(rows.view(3, top_k, -1), weights)))
    assert torch.equal(bits_of(sums), bits_of(combine_rows_reference(rows, weights)))
    order = torch.randperm(3 * top_k)
    places = torch.argsort(order).int().view(3, top_k)
    assert torch.equal(bits_of(combine_rows(rows[order], weights, places)), bits_of(sums))
    assert torch.equal(bits_of(combine_rows_reference(rows[order], weights, places)), bits_of(sums))


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(AssertionError, match="5 rows for 2 tokens and 3 ranks"):
        combine_rows(torch.zeros(5, 32), torch.zeros(2, 3))
    with pytest.raises(AssertionError, match=r"places are torch\.int64"):
        gather_rows(torch.zeros(5, 32), torch.zeros(2, dtype=torch.int64))
