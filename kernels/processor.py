"""What this machine's processor multiplies. Knows nothing of kernels."""

import functools

import torch


@functools.cache
def bf16_instructions() -> str | None:
    """The best instruction set for products of bf16 that torch can use here; without one it takes ten times as long as in float32."""
    has = torch.cpu.get_capabilities().get
    return next((name for name in ("amx_bf16", "avx512_bf16", "bf16") if has(name)), None)
