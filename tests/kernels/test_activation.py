import pytest
import torch

from expertfleet.kernels.activation import sigmoid, silu_mul
from expertfleet.kernels.row_rule import bits_of


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_silu_mul_is_right_and_rounded_once(dtype: torch.dtype) -> None:
    gate, up = (torch.randn(9, 77) * 5).to(dtype), torch.randn(9, 77).to(dtype)
    wanted = torch.nn.functional.silu(gate.double()) * up.double()
    found = silu_mul(gate, up)
    assert found.dtype is dtype
    assert torch.allclose(found.double(), wanted, rtol=2.0**-8 if dtype is torch.bfloat16 else 1e-6, atol=1e-30)


def test_huge_finite_gates_never_give_nan() -> None:
    gate = torch.tensor([[-3e38, -1e4, -89.0, -88.0, 0.0, 88.0, 3e38]])
    found = silu_mul(gate, torch.full_like(gate, -0.5))
    assert not found.isnan().any()
    assert torch.equal(found[0, :3].abs() < 1e-30, torch.tensor([True, True, True]))


def test_an_element_never_depends_on_its_place(threads: int) -> None:
    x = torch.randn(40_003) * 4
    whole, whole_sigmoid = bits_of(silu_mul(x, x)), bits_of(sigmoid(x))
    for _ in range(50):
        start, length = int(torch.randint(0, 40_000, ())), int(torch.randint(1, 90, ()))
        part = x[start : start + length]
        assert torch.equal(bits_of(silu_mul(part, part)), whole[start : start + length])
        assert torch.equal(bits_of(sigmoid(part)), whole_sigmoid[start : start + length])


def test_sigmoid_is_right_at_both_ends() -> None:
    x = torch.tensor([-200.0, -20.0, 0.0, 1.5, 200.0])
    assert torch.allclose(sigmoid(x), torch.sigmoid(x), rtol=1e-6)
