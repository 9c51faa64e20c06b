"""The compiled kernel's blocks turned back into the checkpoint's tensors, word for word; ``cpp/experts.h`` has the layout.

Knows nothing of the kernel itself: torch operations only.
"""

import torch

_OUTPUTS = 16  # of a block
_BLOCKS = 4  # of a tile
_INPUTS = 32  # of the codes between two steps
_SCALE_BYTES = 2 * _OUTPUTS * _BLOCKS
_WORDS = _INPUTS // 8

Projection = tuple[torch.Tensor, torch.Tensor]  # words int32 [out, in / 8], scales bf16 [out, in / group]


def unpack_to_checkpoint(
    gate_up: torch.Tensor, down: torch.Tensor, width: int, hidden: int, group_size: int
) -> tuple[Projection, Projection, Projection]:
    """Two blocks of bytes → gate and up [F, H], down [H, F]."""
    words, scales = _unpacked(gate_up, hidden, group_size)
    # A tile has 32 outputs of gate, then the same ones of up.
    (gate_words, up_words), (gate_scales, up_scales) = (
        part.view(-1, 2, 2 * _OUTPUTS, part.shape[1]).transpose(0, 1).reshape(2, width, -1) for part in (words, scales)
    )
    down_words, down_scales = _unpacked(down, width, group_size)
    # Its last tile may be filled up with outputs that are none.
    return (gate_words, gate_scales), (up_words, up_scales), (down_words[:hidden], down_scales[:hidden])


def _unpacked(block: torch.Tensor, num_in: int, group_size: int) -> Projection:
    """Words [64 · tiles, in / 8] and scales [64 · tiles, in / group]."""
    groups, steps = num_in // group_size, group_size // _INPUTS
    code_bytes = steps * _BLOCKS * _WORDS * _OUTPUTS * 4
    tiles = block.view(-1, groups, _SCALE_BYTES + code_bytes)
    scales = tiles[..., :_SCALE_BYTES].contiguous().view(torch.bfloat16)  # [tiles, groups, 64]
    codes = tiles[..., _SCALE_BYTES:].contiguous().view(torch.int32)
    by_output = codes.view(-1, groups, steps, _BLOCKS, _WORDS, _OUTPUTS).permute(0, 3, 5, 1, 2, 4)
    return by_output.reshape(-1, num_in // 8), scales.transpose(1, 2).reshape(-1, groups)
