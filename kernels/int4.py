"""INT4 weights as compressed-tensors stores them: codes q + 8, eight to an int32 word along the inputs, low nibble first.

Knows nothing of files or experts. A weight [out, in] is words int32 [out, in / 8] and scales bf16 [out, in / group];
its value is (code - 8) · scale. As bytes, byte j of a row holds input 2j in its low and 2j + 1 in its high nibble.
"""

import torch

from .errors import KernelError

ZERO_CODES = 0x88  # two codes of value 0 in one byte


def pack(codes: torch.Tensor) -> torch.Tensor:
    """Codes 0..15 [out, in] of any integer dtype → words int32 [out, in / 8]."""
    num_out, num_in = codes.shape
    if num_in % 8:
        raise KernelError(f"in: {num_in} inputs cannot be packed, wanted a multiple of 8")
    pairs = codes.to(torch.uint8).view(num_out, num_in // 2, 2)
    return (pairs[..., 0] | (pairs[..., 1] << 4)).contiguous().view(torch.int32)


def unpack(words: torch.Tensor) -> torch.Tensor:
    """Words int32 [out, in / 8] → codes uint8 [out, in]."""
    assert words.dtype is torch.int32, f"words are {words.dtype}, wanted int32"
    pairs = bytes_of(words)
    return torch.stack((pairs & 15, pairs >> 4), dim=-1).view(words.shape[0], -1)


def dequantize(words: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The weight [out, in]. Exact in float32 and float64 (a product of 4 and 8 bits), rounded once in bf16."""
    num_out, num_groups = scales.shape
    codes = unpack(words).to(torch.float64 if dtype is torch.float64 else torch.float32).sub_(8)
    return codes.view(num_out, num_groups, -1).mul_(scales[..., None]).view(num_out, -1).to(dtype)


def bytes_of(words: torch.Tensor) -> torch.Tensor:
    """Words [out, in / 8] → uint8 [out, in / 2], the same memory."""
    return words.contiguous().view(torch.uint8)
