import pytest
import torch

from expertfleet.kernels.self_test_inputs import cancelling, canned, scattered_pairs


def test_numbers_are_the_formula_s_and_never_change() -> None:
    assert [round(value, 6) for value in canned((4,), 3).tolist()] == [round(v, 6) for v in _by_hand(4, 3)]


def _by_hand(count: int, salt: int) -> list[float]:
    values = []
    for index in range(count):
        value = ((index + ((salt * 0x9E3779B9) & 0x3FFFFFFF)) * 2654435761 + 12345) & 0xFFFFFFFF
        value = ((value ^ (value >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
        values.append((value ^ (value >> 16)) / 2**31 - 1)
    return values


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_exact_products_cancel_and_nothing_else_is_zero(dtype: torch.dtype) -> None:
    row, weight = cancelling(70, 256, dtype, salt=int(torch.randint(1000, ())))
    assert (weight.double() @ row.double()).abs().max() < 1e-12
    assert (row != 0).float().mean() > 0.99
    assert weight.shape == (70, 256)


def test_pairs_name_every_place_once() -> None:
    count = int(torch.randint(2, 500, ()))
    first, second = scattered_pairs(count)
    assert len(set(torch.cat((first, second)).tolist())) == count - count % 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("num_in", [32, 256])
def test_another_order_of_summation_shows_in_most_sums(num_in: int, dtype: torch.dtype) -> None:
    row, weight = cancelling(60, num_in, dtype, salt=int(torch.randint(1000, ())))
    products = weight.float() * row.float()
    forward, backward = torch.zeros(60), torch.zeros(60)
    for place in range(num_in):  # torch's own sums add float32 in float64
        forward += products[:, place]
        backward += products[:, num_in - 1 - place]
    assert (forward.to(dtype) != backward.to(dtype)).float().mean() > 0.5
