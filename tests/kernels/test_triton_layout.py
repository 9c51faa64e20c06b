import pytest
import torch

from expertfleet.kernels import int4
from expertfleet.kernels.errors import KernelError
from expertfleet.kernels.expert_layer import ExpertShape, Projection
from expertfleet.kernels.triton_layout import ExpertLayout, lay_out, take_apart, unpack_to_checkpoint


def _projection(num_out: int, num_in: int) -> Projection:
    return int4.pack(torch.randint(0, 16, (num_out, num_in))), torch.randn(num_out, num_in // 32).bfloat16()


@pytest.mark.parametrize(("hidden", "width"), [(32, 32), (128, 32), (256, 128), (96, 32), (160, 224)])
def test_what_was_laid_out_can_be_taken_apart(hidden: int, width: int) -> None:
    layout = ExpertLayout(ExpertShape(hidden, width, 32))
    three = (_projection(width, hidden), _projection(width, hidden), _projection(hidden, width))
    block = lay_out(layout, *three)
    assert block.nbytes == layout.nbytes
    for found, projection in zip(take_apart(layout, block), three, strict=True):
        assert torch.equal(found, int4.dequantize(*projection, torch.float64))
    for back, projection in zip(unpack_to_checkpoint(layout, block), three, strict=True):
        assert all(torch.equal(*parts) for parts in zip(back, projection, strict=True))


def test_a_word_holds_one_lane_s_inputs() -> None:
    codes = torch.zeros(16, 128, dtype=torch.uint8)
    codes[3, 32 + 16 + 4 * 2 : 32 + 16 + 4 * 2 + 4] = torch.tensor([1, 2, 3, 4], dtype=torch.uint8)
    gate = int4.pack(codes), torch.ones(16, 4).bfloat16()
    block = lay_out(ExpertLayout(ExpertShape(128, 32, 32)), _stacked(gate), _stacked(gate), _projection(128, 32))
    word = int(block[3 * 16 + 2 * 4 + 1]) & 0xFFFFFFFF  # output 3, lane 2, group 1
    assert word == 0x4200_3100  # even inputs 1 and 3 in nibbles 2 and 3, odd ones 2 and 4 in nibbles 6 and 7


def _stacked(projection: Projection) -> Projection:
    words, scales = projection
    return torch.cat((words, words)), torch.cat((scales, scales))


def test_k2_s_expert_takes_the_checkpoint_s_bytes_and_no_more() -> None:
    assert ExpertLayout(ExpertShape(7168, 2048, 32)).nbytes == 24_772_608


def test_other_groups_are_refused() -> None:
    with pytest.raises(KernelError, match="group_size: triton cannot take 64, only 32"):
        ExpertLayout(ExpertShape(128, 128, 64))
