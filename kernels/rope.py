"""Rotary positions with interleaved pairs, and YaRN's frequencies and scales.

Knows nothing of attention: it turns positions into angles and angles into rotated pairs. Pairs (2i, 2i+1) are rotated
together; the result holds all first halves, then all second halves, which leaves every dot product as it was.
YaRN is static: the same frequencies at every length, also below the original context.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch


class Yarn(Protocol):
    """The fields of ``rope_scaling``; mscale and mscale_all_dim of 0 count as absent."""

    @property
    def factor(self) -> float: ...
    @property
    def original_max_position_embeddings(self) -> int: ...
    @property
    def beta_fast(self) -> float: ...
    @property
    def beta_slow(self) -> float: ...
    @property
    def mscale(self) -> float: ...
    @property
    def mscale_all_dim(self) -> float: ...


@dataclass(frozen=True)
class RopeTable:
    """cos and sin of every position below ``num_positions``, [num_positions, dim / 2] float32."""

    cos: torch.Tensor
    sin: torch.Tensor

    def at(self, positions: torch.Tensor) -> "RopeTable":
        """The rows of ``positions``, an int64 tensor of any shape: [..., dim / 2]."""
        return RopeTable(self.cos[positions], self.sin[positions])


def rope_frequencies(dim: int, theta: float) -> torch.Tensor:
    """[dim / 2] float32: θ^(-2i/dim)."""
    return 1.0 / (theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim))


def yarn_frequencies(dim: int, theta: float, yarn: Yarn) -> torch.Tensor:
    """[dim / 2] float32: fast pairs keep their frequency, slow ones are divided by ``factor``, a ramp between.

    K2-Thinking (beta 1 and 1) has a hard step instead of a ramp: pairs to 19 are kept, from 20 on divided by 64.
    """
    low = max(math.floor(_turning_pair(yarn.beta_fast, dim, theta, yarn)), 0)
    high: float = min(math.ceil(_turning_pair(yarn.beta_slow, dim, theta, yarn)), dim - 1)
    if low == high:
        high += 0.001
    kept = 1 - ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    powers = theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    return 1.0 / (yarn.factor * powers) * (1 - kept) + 1.0 / powers * kept


def rotation_scale(yarn: Yarn | None) -> float:
    """What cos and sin are multiplied with; 1.0 for K2, whose two mscales are equal."""
    if yarn is None:
        return 1.0
    if yarn.mscale and yarn.mscale_all_dim:
        return _mscale(yarn.factor, yarn.mscale) / _mscale(yarn.factor, yarn.mscale_all_dim)
    return _mscale(yarn.factor, 1.0)


def softmax_scale(query_width: int, yarn: Yarn | None) -> float:
    """width^-0.5 · m², where m is YaRN's mscale over all dimensions; 0.14467963 for K2."""
    scale = 1 / math.sqrt(query_width)
    if yarn is None or not yarn.mscale_all_dim:
        return scale
    return scale * _mscale(yarn.factor, yarn.mscale_all_dim) ** 2


def rope_table(num_positions: int, dim: int, theta: float, yarn: Yarn | None) -> RopeTable:
    frequencies = rope_frequencies(dim, theta) if yarn is None else yarn_frequencies(dim, theta, yarn)
    angles = torch.arange(num_positions, dtype=torch.float32)[:, None] * frequencies
    scale = rotation_scale(yarn)
    return RopeTable(angles.cos().mul_(scale), angles.sin().mul_(scale))


def apply_rope(x: torch.Tensor, positions: torch.Tensor, table: RopeTable) -> torch.Tensor:
    """x [R, dim] or [R, heads, dim] at positions [R] int64, rotated in float32 and rounded once to x's dtype."""
    return rotate(x, table.at(positions if x.ndim == 2 else positions[:, None]))


def rotate(x: torch.Tensor, angles: RopeTable) -> torch.Tensor:
    """As ``apply_rope`` by rows of a table, looked up already, that broadcast over x's pairs [..., dim / 2]."""
    x32 = x.float()
    first, second = x32[..., 0::2], x32[..., 1::2]
    cos, sin = angles.cos, angles.sin
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def _turning_pair(num_rotations: float, dim: int, theta: float, yarn: Yarn) -> float:
    """The (fractional) pair that turns ``num_rotations`` times within the original context."""
    wavelengths = yarn.original_max_position_embeddings / (num_rotations * 2 * math.pi)
    return dim * math.log(wavelengths) / (2 * math.log(theta))


def _mscale(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0
