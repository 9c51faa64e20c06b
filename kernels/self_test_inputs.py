"""Numbers from a fixed integer formula, the same on every machine, for self-tests.

Knows nothing of the kernels that are tested. ``cancelling`` is the sharp one: its exact products cancel in pairs that
lie scattered over the inputs, so a result is rounding noise alone and any other order of summation shows in nearly
every element. With ordinary data only about one bf16 output in 10,000 shows it.
"""

import math

import torch

_MASK = 0xFFFFFFFF
_BASE_ROWS = 61  # weight rows that differ; more would test nothing more and take longer to make


def canned(shape: tuple[int, ...], salt: int = 0) -> torch.Tensor:
    """float32 numbers in [-1, 1): a hash of the element's index and ``salt``."""
    count = math.prod(shape)
    value = torch.arange(count, dtype=torch.int64) + ((salt * 0x9E3779B9) & 0x3FFFFFFF)
    value = (value * 2654435761 + 12345) & _MASK
    value = ((value ^ (value >> 16)) * 0x45D9F3B) & _MASK
    value = value ^ (value >> 16)
    return (value.double() / 2**31 - 1).float().view(shape)


def cancelling(num_out: int, num_in: int, dtype: torch.dtype, salt: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A row [in] and a weight [out, in] whose exact product is zero (for an even ``in``)."""
    first, second = scattered_pairs(num_in)
    weight = canned((min(num_out, _BASE_ROWS), num_in), salt + 2)
    weight[:, second] = -weight[:, first]
    weight = weight.to(dtype).repeat(-(-num_out // len(weight)), 1)[:num_out].contiguous()
    return cancelling_row(num_in, salt).to(dtype), weight


def cancelling_row(num_in: int, salt: int = 0) -> torch.Tensor:
    """[in] float32, equal in each scattered pair. Magnitudes from 2⁻⁸ to 2⁸: similar bf16 products would add exactly."""
    first, second = scattered_pairs(num_in)
    row = canned((num_in,), salt + 1) * torch.exp2((canned((num_in,), salt + 3) * 8).round())
    row[second] = row[first]
    return row


def scattered_pairs(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two index lists that pair up ``count`` places at random distances; an odd place is left out."""
    order = torch.argsort(canned((count,), 7), stable=True)
    even = count - count % 2
    return order[0:even:2], order[1:even:2]
