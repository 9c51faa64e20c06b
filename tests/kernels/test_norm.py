import pytest
import torch
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3RMSNorm

from expertfleet.kernels.norm import rms_norm
from expertfleet.kernels.row_rule import bits_of


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("eps", [1e-5, 1e-6])
def test_it_is_transformers_norm_bit_for_bit(dtype: torch.dtype, eps: float) -> None:
    width = int(torch.randint(1, 3000, ()))
    oracle = DeepseekV3RMSNorm(width, eps=eps).to(dtype)
    oracle.weight.data = torch.randn(width).to(dtype)
    x = (torch.randn(7, width) * 3).to(dtype)
    assert torch.equal(bits_of(rms_norm(x, oracle.weight.data, eps)), bits_of(oracle(x).detach()))


@pytest.mark.parametrize("width", [64, 512, 7168])
def test_a_row_never_depends_on_its_batch(threads: int, width: int) -> None:
    x, weight = torch.randn(300, width), torch.randn(width)
    whole = bits_of(rms_norm(x, weight, 1e-5))
    for count in (1, 2, 3, 9, 33, 128):
        start = int(torch.randint(0, 301 - count, ()))
        assert torch.equal(bits_of(rms_norm(x[start : start + count], weight, 1e-5)), whole[start : start + count])


def test_a_row_of_zeros_stays_zero() -> None:
    assert torch.equal(rms_norm(torch.zeros(1, 8), torch.ones(8), 1e-6), torch.zeros(1, 8))
