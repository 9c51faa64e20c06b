"""The gate: hidden rows to the experts they go to and the weights their answers get.

Knows nothing of shards. Formula: DeepSeek-V3 (arXiv 2412.19437, section 2.1.2) as in transformers'
``modeling_deepseek_v3.py``: sigmoid scores in fp32, selection on scores plus a correction bias, weights from the
un-biased scores, normalised and scaled.
"""

import functools
from collections.abc import Callable

import torch

from ..kernels.activation import sigmoid
from ..kernels.native import Native, load


class Gate:
    """Top-k selection of one MoE layer; row-exact: a row's result does not depend on its neighbours."""

    def __init__(
        self,
        linear: Callable[[torch.Tensor], torch.Tensor],  # [T, H] -> fp32 [T, E], row-exact
        bias: torch.Tensor,  # [E] fp32, e_score_correction_bias
        top_k: int,
        num_groups: int,
        num_kept_groups: int,
        normalise: bool,
        scaling_factor: float,
    ) -> None:
        self._linear = linear
        self._bias = bias
        self._top_k = top_k
        self._num_groups = num_groups
        self._num_kept_groups = num_kept_groups
        self._normalise = normalise
        self._scaling_factor = scaling_factor

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[T, H] to (topk_ids [T, K] int64, topk_weights [T, K] fp32), best biased score first."""
        logits = self._linear(x)
        if isinstance(native := load(), Native):
            return native.choose(
                logits,
                self._bias,
                self._top_k,
                self._num_groups,
                self._num_kept_groups,
                self._normalise,
                self._scaling_factor,
            )
        scores = sigmoid(logits)
        biased = scores + self._bias
        if self._num_groups > 1:
            biased = self._keep_best_groups(biased)
        topk_ids = biased.topk(self._top_k, dim=-1).indices
        weights = scores.gather(1, topk_ids)
        if self._normalise:
            total = functools.reduce(torch.add, weights.unbind(1))  # in rank order
            weights = weights / (total + 1e-20).unsqueeze(1)
        return topk_ids, weights * self._scaling_factor

    def _keep_best_groups(self, biased: torch.Tensor) -> torch.Tensor:
        """Experts outside the groups with the largest sum of two best scores become unselectable."""
        T, E = biased.shape
        grouped = biased.view(T, self._num_groups, -1)
        best = grouped.topk(2, dim=-1).values
        kept = (best[..., 0] + best[..., 1]).topk(self._num_kept_groups, dim=-1).indices
        mask = torch.ones(T, self._num_groups, dtype=torch.bool).scatter_(1, kept, False)
        return grouped.masked_fill(mask.unsqueeze(-1), float("-inf")).view(T, E)
