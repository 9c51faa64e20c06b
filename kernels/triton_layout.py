"""How an expert's weights lie in GPU memory: the checkpoint's own bits in the order in which a kernel reads them.

Knows nothing of Triton: torch operations only, on whatever device the checkpoint's words are. One expert is one block of
int32 words: codes of gate, up and down, then their scales, as many bytes as the checkpoint has where 128 divides the
inputs and 16 the outputs (K2's do); elsewhere the last tile is filled with codes of value 0 and scales of 0.
1. Sixteen outputs by 128 inputs are one tile, 1 KiB of codes in one piece and 128 bytes of scales in another.
2. In a tile an output has 16 words, word 4·lane + group. Of a group's 32 inputs the tensor core takes from each lane
   (0..3) inputs 16·half + 4·lane + (0..3): eight codes, one word, so no code ever crosses a thread.
3. In a word the even inputs' codes are nibbles 0..3, the odd ones' nibbles 4..7: a shift, a mask and an exponent make two
   bf16 numbers at once. An output's four scales of a tile are one 64-bit load.
"""

from dataclasses import dataclass

import torch

from . import int4
from .errors import KernelError
from .expert_layer import ExpertShape, Projection

GROUP_SIZE = 32
TILE_IN = 128  # inputs of a tile: four groups
TILE_OUT = 16
_TILE_WORDS = TILE_OUT * TILE_IN // 8
_TILE_SCALE_WORDS = TILE_OUT * TILE_IN // GROUP_SIZE // 2  # two bf16 scales in a word


@dataclass(frozen=True)
class ExpertLayout:
    """Where the parts of an expert begin in its block, counted in int32 words."""

    shape: ExpertShape

    def __post_init__(self) -> None:
        if self.shape.group_size != GROUP_SIZE:
            raise KernelError(f"group_size: triton cannot take {self.shape.group_size}, only {GROUP_SIZE}")

    @property
    def tiles_up(self) -> int:
        """Tiles of gate, and of up."""
        return _ceil(self.shape.width, TILE_OUT) * _ceil(self.shape.hidden, TILE_IN)

    @property
    def tiles_down(self) -> int:
        return _ceil(self.shape.hidden, TILE_OUT) * _ceil(self.shape.width, TILE_IN)

    @property
    def num_words(self) -> int:
        return (2 * self.tiles_up + self.tiles_down) * (_TILE_WORDS + _TILE_SCALE_WORDS)

    @property
    def nbytes(self) -> int:
        return 4 * self.num_words


def lay_out(layout: ExpertLayout, gate: Projection, up: Projection, down: Projection) -> torch.Tensor:
    """The checkpoint's tensors of one expert → its block [words] int32, on their device."""
    three = (gate, up, down)
    parts = [_tiled_codes(words) for words, _ in three] + [_tiled_scales(scales) for _, scales in three]
    block = torch.cat([part.flatten() for part in parts])
    assert block.shape == (layout.num_words,), f"{tuple(block.shape)} words, wanted {layout.num_words}"
    return block


def unpack_to_checkpoint(layout: ExpertLayout, block: torch.Tensor) -> tuple[Projection, Projection, Projection]:
    """The checkpoint's gate, up and down, as ``lay_out`` was given them."""
    width, hidden = layout.shape.width, layout.shape.hidden
    gate_codes, up_codes, down_codes, gate_scales, up_scales, down_scales = _parts(layout, block)
    return (
        (_untiled_codes(gate_codes, width, hidden), _untiled_scales(gate_scales, width, hidden)),
        (_untiled_codes(up_codes, width, hidden), _untiled_scales(up_scales, width, hidden)),
        (_untiled_codes(down_codes, hidden, width), _untiled_scales(down_scales, hidden, width)),
    )


def take_apart(layout: ExpertLayout, block: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The plain way back: dequantised gate [F, H], up [F, H] and down [H, F] in float64."""
    width, hidden = layout.shape.width, layout.shape.hidden
    gate_codes, up_codes, down_codes, gate_scales, up_scales, down_scales = _parts(layout, block)
    return (
        _dequantised(gate_codes, gate_scales, width, hidden),
        _dequantised(up_codes, up_scales, width, hidden),
        _dequantised(down_codes, down_scales, hidden, width),
    )


def _parts(layout: ExpertLayout, block: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Codes of gate, up and down, then their scales."""
    tiles = (layout.tiles_up, layout.tiles_up, layout.tiles_down)
    counts = [_TILE_WORDS * count for count in tiles] + [_TILE_SCALE_WORDS * count for count in tiles]
    return block.split_with_sizes(counts)


def _tiled_codes(words: torch.Tensor) -> torch.Tensor:
    """Words [out, in / 8] of the checkpoint → [out / 16, in / 128, 16, 4 lanes, 4 groups] int32."""
    rows = _padded(int4.bytes_of(words), TILE_IN // 2, int4.ZERO_CODES)
    num_out, num_bytes = rows.shape
    tiles = rows.view(num_out // TILE_OUT, TILE_OUT, num_bytes * 2 // TILE_IN, 4, 2, 4, 2)
    first, second = tiles.unbind(
        -1
    )  # [out tiles, 16, in tiles, group, half, lane]: inputs 4·lane + (0, 1), and + (2, 3)
    even = (first & 15) | (second << 4)
    odd = (first >> 4) | (second & 0xF0)
    nibbles = torch.stack((even, odd), dim=-1)  # [.., group, half, lane, parity]
    return nibbles.permute(0, 2, 1, 5, 3, 6, 4).flatten(-2).view(torch.int32)[..., 0]


def _tiled_scales(scales: torch.Tensor) -> torch.Tensor:
    """Scales [out, in / 32] → [out / 16, in / 128, 16, 2] int32, four bf16 scales an output."""
    rows = _padded(scales, TILE_IN // GROUP_SIZE, 0)
    tiles = rows.view(rows.shape[0] // TILE_OUT, TILE_OUT, -1, TILE_IN // GROUP_SIZE).transpose(1, 2)
    return tiles.contiguous().view(torch.int32)


def _untiled_codes(codes: torch.Tensor, num_out: int, num_in: int) -> torch.Tensor:
    """``_tiled_codes`` the other way round."""
    tiles = codes.contiguous().view(torch.uint8).view(-1, _ceil(num_in, TILE_IN), TILE_OUT, 4, 4, 2, 2)
    even, odd = tiles.permute(0, 2, 1, 4, 6, 3, 5).unbind(-1)  # [out tiles, 16, in tiles, group, half, lane]
    pairs = torch.stack(((even & 15) | (odd << 4), (even >> 4) | (odd & 0xF0)), dim=-1)
    rows = pairs.reshape(-1, _ceil(num_in, TILE_IN) * TILE_IN // 2)
    return rows[:num_out, : num_in // 2].contiguous().view(torch.int32)


def _untiled_scales(scales: torch.Tensor, num_out: int, num_in: int) -> torch.Tensor:
    tiles = scales.contiguous().view(torch.bfloat16).view(-1, _ceil(num_in, TILE_IN), TILE_OUT, TILE_IN // GROUP_SIZE)
    rows = tiles.transpose(1, 2).reshape(-1, _ceil(num_in, TILE_IN) * TILE_IN // GROUP_SIZE)
    return rows[:num_out, : num_in // GROUP_SIZE].contiguous()


def _dequantised(codes: torch.Tensor, scales: torch.Tensor, num_out: int, num_in: int) -> torch.Tensor:
    tiles_in = _ceil(num_in, TILE_IN)
    words = codes.view(-1, tiles_in, TILE_OUT, 4, 4)  # [out tiles, in tiles, 16, lane, group]
    shifts = torch.arange(0, 32, 4, device=codes.device).view(2, 2, 2)  # [parity, half, pair of the half]
    values = ((words[..., None, None, None] >> shifts) & 15) - 8  # [.., lane, group, parity, half, pair]
    by_input = values.permute(
        0, 2, 1, 4, 6, 3, 7, 5
    ).double()  # [out tiles, 16, in tiles, group, half, lane, pair, parity]
    factors = scales.view(torch.bfloat16).view(-1, tiles_in, TILE_OUT, 4).transpose(1, 2).double()
    return (by_input * factors[..., None, None, None, None]).reshape(-1, tiles_in * TILE_IN)[:num_out, :num_in]


def _padded(rows: torch.Tensor, unit_in: int, fill: int) -> torch.Tensor:
    """[out, in] filled up to whole tiles."""
    num_out, num_in = rows.shape
    missing = (0, -num_in % unit_in, 0, -num_out % TILE_OUT)
    return torch.nn.functional.pad(rows, missing, value=fill) if any(missing) else rows


def _ceil(count: int, unit: int) -> int:
    return -(-count // unit)
