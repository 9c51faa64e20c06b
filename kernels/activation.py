"""SwiGLU's product and the sigmoid, element by element, the same bits at every place of a tensor.

Knows nothing of experts or gates. torch's own silu and sigmoid give other float32 bits in a tensor's last few elements
(a scalar tail; measured, 1 of 3 slices); exp, division and multiplication do not, so both are built from these.
"""

import torch


def sigmoid(x: torch.Tensor) -> torch.Tensor:
    """1 / (1 + e^-x) in float32; x is float32."""
    assert x.dtype is torch.float32, f"x is {x.dtype}, wanted float32"
    return torch.neg(x).exp_().add_(1).reciprocal_()


def silu_mul(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) · up in float32, rounded once to the inputs' dtype; all [R, F]."""
    assert gate.shape == up.shape, f"gate is {tuple(gate.shape)}, up is {tuple(up.shape)}"
    assert gate.dtype is up.dtype, f"gate is {gate.dtype}, up is {up.dtype}"
    gate32 = gate.float()
    denominator = torch.neg(gate32).exp_().add_(1)  # inf where gate < -88: the quotient is then -0, never NaN
    return torch.div(gate32, denominator, out=denominator).mul_(up.float()).to(gate.dtype)
