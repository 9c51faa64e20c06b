"""The gate's choice: logits to the best experts and their weights, row by row the same bits whatever rows are beside.

Knows nothing of where logits come from, but that the compiled products and it can be one call. Formula: DeepSeek-V3 (arXiv
2412.19437, section 2.1.2) as in transformers' ``modeling_deepseek_v3.py``: sigmoid scores in fp32, selection on scores plus a
correction bias, weights from the un-biased scores, normalised and scaled. Compiled where there is a compiler: then experts of equal
scores are taken in the order of their ids.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .activation import sigmoid
from .batch_invariant_linear import BatchInvariantScores
from .native import GateCall, Native, load

Linear = Callable[[torch.Tensor], torch.Tensor]  # [T, H] -> fp32 [T, E], row-exact


@dataclass(frozen=True, slots=True)
class TopKGate:
    """``top_k`` of the experts in the ``num_kept_groups`` best groups; a group is worth the sum of its two best scores."""

    top_k: int
    num_groups: int = 1
    num_kept_groups: int = 1
    normalise: bool = True
    scaling_factor: float = 1.0

    def after(self, linear: Linear, bias: torch.Tensor) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
        """The whole gate, x [T, H] to what the choice gives; one compiled call where both are compiled."""
        native = load()
        if isinstance(linear, BatchInvariantScores) and linear.weight is not None and isinstance(native, Native):
            return GateCall(native, linear.weight, bias, *self._settings)
        return lambda x: self(linear(x), bias)

    def __call__(self, logits: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """fp32 [T, E] and [E] to (topk_ids [T, K] int64, topk_weights [T, K] fp32), best biased score first."""
        native = load()
        if isinstance(native, Native):
            return native.choose(logits, bias, *self._settings)
        scores = sigmoid(logits)
        biased = scores + bias
        if self.num_groups > 1:
            biased = self._keep_best_groups(biased)
        topk_ids = biased.topk(self.top_k, dim=-1).indices
        weights = scores.gather(1, topk_ids)
        if self.normalise:
            total = functools.reduce(torch.add, weights.unbind(1))  # in rank order
            weights = weights / (total + 1e-20).unsqueeze(1)
        return topk_ids, weights * self.scaling_factor

    @property
    def _settings(self) -> tuple[int, int, int, bool, float]:
        """As the compiled calls take them."""
        return self.top_k, self.num_groups, self.num_kept_groups, self.normalise, self.scaling_factor

    def _keep_best_groups(self, biased: torch.Tensor) -> torch.Tensor:
        """Experts outside the groups with the largest sum of two best scores become unselectable."""
        T, E = biased.shape
        grouped = biased.view(T, self.num_groups, -1)
        best = grouped.topk(2, dim=-1).values
        kept = (best[..., 0] + best[..., 1]).topk(self.num_kept_groups, dim=-1).indices
        mask = torch.ones(T, self.num_groups, dtype=torch.bool).scatter_(1, kept, False)
        return grouped.masked_fill(mask.unsqueeze(-1), float("-inf")).view(T, E)
