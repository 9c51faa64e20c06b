"""RMS normalisation, rounded as transformers does it. Knows nothing of where in a layer it stands."""

import torch


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x [..., H] · rsqrt(mean(x²) + eps) in float32, rounded to x's dtype, then times weight [H]."""
    assert weight.shape == x.shape[-1:], f"weight is {tuple(weight.shape)}, x is {tuple(x.shape)}"
    x32 = x.float()
    scale = torch.rsqrt(x32.pow(2).mean(-1, keepdim=True).add_(eps))
    return weight * (x32 * scale).to(x.dtype)
