"""RMS normalisation, rounded as transformers does it. Knows nothing of where in a layer it stands."""

import torch


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x [..., H] · rsqrt(mean(x²) + eps) in float32, rounded to x's dtype, then times weight [H]."""
    assert weight.shape == x.shape[-1:], f"weight is {tuple(weight.shape)}, x is {tuple(x.shape)}"
    x32 = x.float()
    mean = torch.mul(x32, x32).sum(-1, keepdim=True).div_(x.shape[-1])
    return weight * torch.mul(x32, mean.add_(eps).rsqrt_()).to(x.dtype)
