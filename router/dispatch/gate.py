"""The gate: hidden rows to the experts they go to and the weights their answers get.

Knows nothing of shards. What is chosen, and the formula's source, is ``kernels/top_k_gate.py``'s.
"""

import torch

from ...kernels.top_k_gate import Linear, TopKGate


class Gate:
    """Top-k selection of one MoE layer; row-exact: a row's result does not depend on its neighbours."""

    def __init__(
        self,
        linear: Linear,
        bias: torch.Tensor,  # [E] fp32, e_score_correction_bias
        choice: TopKGate,
    ) -> None:
        self._call = choice.after(linear, bias)

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[T, H] to (topk_ids [T, K] int64, topk_weights [T, K] fp32), best biased score first."""
        return self._call(x)
