"""Muon for the matrices and AdamW for the rest, as K2's own family was trained.

Knows nothing of the model. Muon (Jordan et al., 2024; scaled as in "Muon is scalable for LLM training", Liu et al.,
2025): the momentum's singular values are brought near 1 by five Newton-Schulz steps, then multiplied by
0.2 · sqrt(larger side), which makes its steps as large as AdamW's. A stack of experts is a batch of matrices.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import nn

from .precision import product_dtype

_MOMENTUM = 0.95
_ADAM_SHARE = 0.3
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_NOT_MATRICES = ("embed_tokens", ".gate.weight")


class Muon(torch.optim.Optimizer):
    """Of parameters that are a matrix [rows, columns] or a stack of them [..., rows, columns]."""

    def __init__(self, params: Iterable[torch.Tensor], lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                by_shape[parameter.shape[-2:]].append(parameter)
            for alike in by_shape.values():
                self._step_alike(alike, group["lr"], group["weight_decay"])

    def _step_alike(self, parameters: list[torch.Tensor], lr: float, weight_decay: float) -> None:
        """All matrices of one shape are one batch, as many small products cost more than a large one."""
        updates = []
        for parameter in parameters:
            assert parameter.grad is not None
            momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
            momentum.lerp_(parameter.grad, 1 - _MOMENTUM)
            updates.append(parameter.grad.lerp(momentum, _MOMENTUM).view(-1, *parameter.shape[-2:]))
        rate = lr * 0.2 * max(parameters[0].shape[-2:]) ** 0.5
        steps = torch.split(_orthogonal(torch.cat(updates)), [len(update) for update in updates])
        for parameter, step in zip(parameters, steps, strict=True):
            parameter.mul_(1 - lr * weight_decay).add_(step.view_as(parameter), alpha=-rate)


def make_optimizers(model: nn.Module, lr: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    matrices: list[torch.Tensor] = []
    others: list[torch.Tensor] = []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim >= 2 and not any(part in name for part in _NOT_MATRICES)
        (matrices if is_matrix else others).append(parameter)
    optimizers = [
        Muon(matrices, lr, weight_decay),
        torch.optim.AdamW(others, lr * _ADAM_SHARE, betas=(0.9, 0.95), weight_decay=weight_decay, fused=True),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def _orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """[matrices, rows, columns] with singular values near 1."""
    x = matrix.to(product_dtype(matrix.device))
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(5):
        square = torch.bmm(x, x.mT)
        square = torch.baddbmm(square, square, square, beta=b, alpha=c)
        x = torch.baddbmm(x, square, x, beta=a)
    update: torch.Tensor = (x if wide else x.mT).to(matrix.dtype)
    return update
