import pytest
import torch

from expertfleet.kernels import int4
from expertfleet.kernels.errors import KernelError
from expertfleet.kernels.int4pack import Int4Packer, int4_call, int4_rule
from expertfleet.kernels.row_rule import RuleBook, bits_of

Weight = tuple[torch.Tensor, torch.Tensor]


def _weight(num_out: int, num_in: int, group_size: int) -> Weight:
    scales = (torch.rand(num_out, num_in // group_size) + 0.1).bfloat16()
    return int4.pack(torch.randint(0, 16, (num_out, num_in))), scales


def test_this_processor_s_layout_is_known() -> None:
    assert Int4Packer().layout is not None


@pytest.mark.parametrize("num_out", [16, 32, 48, 64, 80, 112, 128, 192, 208])
def test_codes_are_the_operator_s_own_packing(num_out: int) -> None:
    words, scales = _weight(num_out, 96, 32)
    wanted = torch.ops.aten._convert_weight_to_int4pack_for_cpu(int4.unpack(words).int(), 1)
    assert torch.equal(Int4Packer().pack([(words, scales)], torch.bfloat16).codes.flatten(), wanted.flatten())


@pytest.mark.parametrize("sizes", [(64, 128), (48, 48), (5, 3), (64, 16)])
def test_stacked_weights_equal_one_weight(sizes: tuple[int, ...]) -> None:
    parts = [_weight(size, 64, 32) for size in sizes]
    packer = Int4Packer()
    stacked = packer.pack(parts, torch.bfloat16)
    whole = packer.pack([(torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]))], torch.bfloat16)
    assert torch.equal(stacked.codes, whole.codes)
    assert torch.equal(stacked.scales_and_zeros, whole.scales_and_zeros)


@pytest.mark.parametrize("group_size", [32, 64, 128, 256])
@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 4e-3), (torch.float32, 1e-6)])
def test_the_product_is_right_for_any_number_of_outputs(group_size: int, dtype: torch.dtype, error: float) -> None:
    num_out = int(torch.randint(1, 150, ()))
    words, scales = _weight(num_out, 512, group_size)
    x = torch.randn(7, 512).to(dtype)
    found = int4_call(Int4Packer().pack([(words, scales)], dtype))(x)
    wanted = x.double() @ int4.dequantize(words, scales, torch.float64).t()
    assert found.shape == (7, num_out)
    assert (found.double() - wanted).norm() <= error * wanted.norm()


def test_without_a_known_layout_the_operator_packs_itself() -> None:
    packer, own = Int4Packer(), Int4Packer()
    own.layout = None
    parts = [_weight(100, 64, 32), _weight(64, 64, 32)]
    assert torch.equal(packer.pack(parts, torch.bfloat16).codes, own.pack(parts, torch.bfloat16).codes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_all_row_counts_are_exact(threads: int, dtype: torch.dtype) -> None:
    rule = int4_rule(RuleBook(), Int4Packer(), 96, 256, 32, dtype)
    call = int4_call(Int4Packer().pack([_weight(96, 256, 32)], dtype))
    x = torch.randn(300, 256).to(dtype)
    whole = bits_of(rule.run(call, x))
    for count in torch.randint(1, 300, (30,)).tolist():
        assert torch.equal(bits_of(rule.run(call, x[300 - count :])), whole[300 - count :]), count


@pytest.mark.parametrize(("num_in", "groups", "message"), [(64, 4, "group_size: .* 16"), (96, 1, "group_size: .* 96")])
def test_group_sizes_the_operator_cannot_take_are_refused(num_in: int, groups: int, message: str) -> None:
    words = int4.pack(torch.randint(0, 16, (16, num_in)))
    with pytest.raises(KernelError, match=message):
        Int4Packer().pack([(words, torch.ones(16, groups).bfloat16())], torch.bfloat16)
