"""Packing for torch's CPU operator ``_weight_int4pack_mm_for_cpu``, and calls of it.

Knows nothing of experts. The operator wants the codes in blocks of outputs that it reads side by side, and a scale
*and* a zero per group in real memory (a stride-0 view of zeros is accepted and computes garbage): 1.111 × the
checkpoint's bytes at group 32.
1. ``Int4Packer`` finds the block layout of this processor by comparing with the operator's own packing of a sample;
2. ``pack`` moves the checkpoint's bytes there by masks, shifts and a transposition (unpacking them first is 9 × slower),
   ``unpack`` moves them back;
3. ``int4_call`` multiplies. In bf16 it gives the same bits for every row count; float32 is scalar code, 1 GFLOP/s.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from . import int4
from .canned import cancelling_row, canned, scattered_pairs
from .errors import KernelError
from .row_rule import EVERY_SIZES, RowCall, RowRule, RuleBook, choose_rule

GROUP_SIZES = (32, 64, 128, 256)
_BLOCK = 16  # outputs must be a multiple of this; missing ones are padded with zeros
_SAMPLE = (208, 16)  # three blocks of 64 and one of 16
_FLOAT32_TEST_OUTPUTS = 64
_LOW_NIBBLES = np.uint64(0x0F0F0F0F0F0F0F0F)
_FOUR = np.uint64(4)


@dataclass(frozen=True)
class Layout:
    """``block`` outputs share a stretch; a byte holds outputs n and n + block / 2 if ``halves``, else 2n and 2n + 1."""

    block: int
    halves: bool


@dataclass(frozen=True)
class PackedWeight:
    """A weight [out, in] as the operator wants it, padded to a multiple of 16 outputs."""

    codes: torch.Tensor  # uint8, [padded out, in / 2] in the operator's own order
    scales_and_zeros: torch.Tensor  # [in / group, padded out, 2]
    num_out: int
    group_size: int

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales_and_zeros.nbytes


class Int4Packer:
    """Packs weights for the operator of this processor; ``layout`` is None where only the operator's own packing fits."""

    def __init__(self) -> None:
        self.layout = _find_layout()

    def pack(self, parts: Sequence[tuple[torch.Tensor, torch.Tensor]], dtype: torch.dtype) -> PackedWeight:
        """Words [out, in / 8] and scales [out, in / group] of one or more weights, stacked along the outputs."""
        num_in = parts[0][0].shape[1] * 8
        num_groups = parts[0][1].shape[1]
        num_out = sum(words.shape[0] for words, _ in parts)
        check_shape(num_out, num_in, num_in // num_groups)
        padded = -(-num_out // _BLOCK) * _BLOCK
        both = torch.zeros(num_groups, padded, 2, dtype=dtype)
        codes = torch.empty(padded, num_in // 2, dtype=torch.uint8)
        start = 0
        for rows, scales in self._blockwise(parts):
            stop = start + rows.shape[0]
            both[:, start : start + scales.shape[0], 0] = scales.t()
            if self.layout is None:
                codes[start:stop] = _own_packing(rows).view(codes[start:stop].shape)
            else:
                _permute(rows, self.layout, codes[start:stop])
            start = stop
        return PackedWeight(codes, both, num_out, num_in // num_groups)

    def unpack(self, weight: PackedWeight) -> tuple[torch.Tensor, torch.Tensor]:
        """Words [out, in / 8] and scales [out, in / group] as they were. Raises KernelError without a ``layout``."""
        if self.layout is None:
            raise KernelError("backend: cpu-int4pack cannot turn weights back, this processor's packing is not known")
        rows = torch.empty_like(weight.codes)
        _permute_back(weight.codes, self.layout, rows)
        num_out = weight.num_out
        scales = weight.scales_and_zeros[:, :num_out, 0].t().to(torch.bfloat16)
        return rows[:num_out].view(torch.int32), scales.contiguous()

    def _blockwise(self, parts: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Bytes [out, in / 2] and scales, stacked only where a part does not fill whole blocks; padded at the end."""
        block = self.layout.block if self.layout else 0
        if block and all(words.shape[0] % block == 0 for words, _ in parts):
            return [(int4.bytes_of(words), scales) for words, scales in parts]
        rows = torch.cat([int4.bytes_of(words) for words, _ in parts])
        missing = rows.new_full((-rows.shape[0] % _BLOCK, rows.shape[1]), int4.ZERO_CODES)
        return [(torch.cat((rows, missing)), torch.cat([scales for _, scales in parts]))]


def check_shape(num_out: int, num_in: int, group_size: int) -> None:
    if group_size not in GROUP_SIZES:
        raise KernelError(f"group_size: cpu-int4pack cannot take {group_size}, only {', '.join(map(str, GROUP_SIZES))}")
    if num_in % group_size:
        raise KernelError(f"in: {num_in} inputs are not a multiple of the group size {group_size}")
    if num_out < 1:
        raise KernelError(f"out: {num_out} outputs, wanted at least 1")


def int4_call(weight: PackedWeight) -> RowCall:
    """x [R, in] → [R, out] in x's dtype, for counts R that a rule allows."""
    multiply = torch.ops.aten._weight_int4pack_mm_for_cpu.default
    codes, both, group_size, num_out = weight.codes, weight.scales_and_zeros, weight.group_size, weight.num_out
    if num_out == codes.shape[0]:
        return lambda x: multiply(x, codes, group_size, both)
    return lambda x: multiply(x, codes, group_size, both)[:, :num_out]


def int4_rule(
    book: RuleBook, packer: Int4Packer, num_out: int, num_in: int, group_size: int, dtype: torch.dtype
) -> RowRule:
    """The rule for a weight of this shape. In float32 fewer outputs are tried: they only cost time, one by one."""
    tried = num_out if dtype is torch.bfloat16 else min(num_out, _FLOAT32_TEST_OUTPUTS)

    def choose() -> RowRule:
        row, weight = _cancelling_weight(packer, tried, num_in, group_size, dtype)
        return choose_rule([("int4pack", int4_call(weight))], row, EVERY_SIZES, every=True)

    return book.find(f"int4 {num_out}x{num_in} group {group_size} {str(dtype).removeprefix('torch.')}", choose)


def _cancelling_weight(
    packer: Int4Packer, num_out: int, num_in: int, group_size: int, dtype: torch.dtype
) -> tuple[torch.Tensor, PackedWeight]:
    """A row and a weight whose exact products cancel (see canned.py): codes q and 16 - q, one scale per output."""
    first, second = scattered_pairs(num_in)
    codes = (canned((min(num_out, 61), num_in), 2).add_(1).mul_(7.5).floor_() + 1).to(torch.uint8)
    codes[:, second] = 16 - codes[:, first]
    codes = codes.repeat(-(-num_out // len(codes)), 1)[:num_out]
    scales = (canned((num_out, 1), 3).abs() + 0.1).to(torch.bfloat16).expand(num_out, num_in // group_size)
    return cancelling_row(num_in).to(dtype), packer.pack([(int4.pack(codes), scales)], dtype)


def _permute(rows: torch.Tensor, layout: Layout, packed: torch.Tensor) -> None:
    """Checkpoint bytes [out, in / 2] → the operator's order in ``packed``, the same shape."""
    num_out, num_bytes = rows.shape
    whole = num_out - num_out % layout.block
    if whole:
        blocks = rows[:whole].view(-1, layout.block, num_bytes)
        half = layout.block // 2
        low, high = (blocks[:, :half], blocks[:, half:]) if layout.halves else (blocks[:, 0::2], blocks[:, 1::2])
        _interleave(low, high, packed[:whole])
    if whole < num_out:
        _interleave(rows[None, whole::2], rows[None, whole + 1 :: 2], packed[whole:])


def _interleave(low: torch.Tensor, high: torch.Tensor, packed: torch.Tensor) -> None:
    """Outputs [blocks, half, in / 2] for the low and the high nibbles → packed, as [blocks, in / 2, 2, half].

    Block by block with small buffers, eight bytes at a time; numpy transposes bytes 2.4 × faster than torch.
    """
    num_blocks, half, num_bytes = low.shape
    target = packed.numpy().reshape(num_blocks, num_bytes, 2, half)
    lows, highs = low.numpy().view(np.uint64), high.numpy().view(np.uint64)
    first, second = np.empty_like(lows[0]), np.empty_like(lows[0])
    for block in range(num_blocks):
        np.bitwise_and(lows[block], _LOW_NIBBLES, out=first)
        np.left_shift(highs[block], _FOUR, out=second)
        np.bitwise_or(first, np.bitwise_and(second, ~_LOW_NIBBLES, out=second), out=first)
        target[block, :, 0] = first.view(np.uint8).T  # even inputs
        np.right_shift(lows[block], _FOUR, out=first)
        np.bitwise_and(first, _LOW_NIBBLES, out=first)
        np.bitwise_or(first, np.bitwise_and(highs[block], ~_LOW_NIBBLES, out=second), out=first)
        target[block, :, 1] = first.view(np.uint8).T  # odd inputs


def _permute_back(packed: torch.Tensor, layout: Layout, rows: torch.Tensor) -> None:
    """The operator's order [out, in / 2] → checkpoint bytes in ``rows``, the same shape."""
    num_out, num_bytes = rows.shape
    whole = num_out - num_out % layout.block
    if whole:
        blocks = rows[:whole].view(-1, layout.block, num_bytes)
        half = layout.block // 2
        low, high = (blocks[:, :half], blocks[:, half:]) if layout.halves else (blocks[:, 0::2], blocks[:, 1::2])
        _part(packed[:whole], low, high)
    if whole < num_out:
        _part(packed[whole:], rows[None, whole::2], rows[None, whole + 1 :: 2])


def _part(packed: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> None:
    """``_interleave`` the other way round."""
    num_blocks, half, num_bytes = low.shape
    source = packed.view(num_blocks, num_bytes, 2, half)
    for block in range(num_blocks):
        even, odd = source[block, :, 0].t(), source[block, :, 1].t()  # [half, in / 2]
        low[block] = (even & 15) | (odd << 4)
        high[block] = (even >> 4) | (odd & 0xF0)


def _own_packing(rows: torch.Tensor) -> torch.Tensor:
    codes = int4.unpack(rows.view(torch.int32)).to(torch.int32)
    packed: torch.Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    return packed


def _find_layout() -> Layout | None:
    codes = (canned(_SAMPLE, 5).add_(1).mul_(8)).to(torch.uint8)
    rows = int4.bytes_of(int4.pack(codes))
    wanted = _own_packing(rows)
    for layout in (Layout(64, True), Layout(32, True), Layout(32, False), Layout(64, False), Layout(16, False)):
        found = torch.empty_like(rows)
        _permute(rows, layout, found)
        if torch.equal(found.flatten(), wanted.flatten()):
            return layout
    return None
