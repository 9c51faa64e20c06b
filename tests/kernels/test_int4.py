import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32

from expertfleet.kernels import int4
from expertfleet.kernels.errors import KernelError


def test_words_are_those_of_compressed_tensors() -> None:
    num_out, num_in = int(torch.randint(1, 40, ())), 8 * int(torch.randint(1, 40, ()))
    codes = torch.randint(0, 16, (num_out, num_in))
    words = int4.pack(codes)
    assert torch.equal(words, pack_to_int32((codes - 8).to(torch.int8), 4))
    assert torch.equal(unpack_from_int32(words, 4, torch.Size((num_out, num_in))), (codes - 8).to(torch.int8))


def test_unpack_undoes_pack() -> None:
    codes = torch.randint(0, 16, (13, 96))
    assert torch.equal(int4.unpack(int4.pack(codes)).long(), codes)


def test_the_low_nibble_is_the_first_input_and_minus_eight_is_code_zero() -> None:
    words = torch.tensor([[0x10]], dtype=torch.int32)
    assert int4.unpack(words).tolist() == [[0, 1, 0, 0, 0, 0, 0, 0]]
    scales = torch.tensor([[2.0]], dtype=torch.bfloat16)
    assert int4.dequantize(words, scales).tolist() == [[-16.0, -14.0, *([-16.0] * 6)]]


def test_float32_weights_are_exact() -> None:
    codes = torch.randint(0, 16, (6, 64))
    scales = (torch.randn(6, 2) * 10.0 ** torch.randint(-8, 8, (6, 2))).bfloat16()
    wanted = (codes - 8).double() * scales.double().repeat_interleave(32, 1)
    assert torch.equal(int4.dequantize(int4.pack(codes), scales).double(), wanted)
    assert torch.equal(int4.dequantize(int4.pack(codes), scales, torch.float64), wanted)
    assert torch.equal(int4.dequantize(int4.pack(codes), scales, torch.bfloat16), wanted.bfloat16())


def test_inputs_that_fill_no_word_are_refused() -> None:
    with pytest.raises(KernelError, match="12 inputs"):
        int4.pack(torch.zeros(2, 12, dtype=torch.int64))
