"""One MoE layer at K2-Thinking's true dimensions, through a real shard, against float64."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from expertfleet.attention_workers.config import AttentionConfig
from expertfleet.attention_workers.model import moe_forward
from expertfleet.attention_workers.server import AttentionServer
from expertfleet.checkpoint.make_tiny import make_tiny
from expertfleet.checkpoint.tensors import Checkpoint
from expertfleet.kernels import int4

LAYER = 1


def reference(checkpoint: Checkpoint, x: torch.Tensor) -> torch.Tensor:
    """Gate, eight experts and the shared expert in float64 on the checkpoint's own values: [T, H]."""
    config, name = checkpoint.config, f"model.layers.{LAYER}.mlp"
    x = x.double()
    scores = torch.sigmoid(x @ checkpoint.read(f"{name}.gate.weight").double().T)
    chosen = (scores + checkpoint.read(f"{name}.gate.e_score_correction_bias").double()).topk(config.top_k).indices
    weights = scores.gather(1, chosen)
    weights = weights / weights.sum(1, keepdim=True) * config.routed_scaling_factor
    total = swiglu(x, *(checkpoint.read(f"{name}.shared_experts.{part}_proj.weight").double() for part in PARTS))
    for expert in chosen.unique().tolist():
        tensors = [
            int4.dequantize(checkpoint.read(packed), checkpoint.read(scale), torch.float64)
            for packed, scale in checkpoint.expert_names(LAYER, expert)
        ]
        rows, ranks = (chosen == expert).nonzero(as_tuple=True)
        total[rows] += swiglu(x[rows], *tensors) * weights[rows, ranks].unsqueeze(1)
    return total


PARTS = ("gate", "up", "down")


def swiglu(x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    return (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T


@pytest.mark.slow
def test_relative_error_is_at_most_4e_3(
    start: Callable[..., Any], run_forward: Callable[..., Any], tmp_path: Path
) -> None:
    directory = tmp_path / "k2"
    make_tiny(directory, like="kimi-k2-thinking", layers=2, experts=16, dense_width=512, vocab=512)
    shard = start("expert_workers", "--model", directory, "--threads", 2)
    config = AttentionConfig(directory, shards=(shard.address(),), max_model_len=512, threads=2, layer_deadline_s=60)
    server = AttentionServer(config)
    server.start()
    assert server.router.wait_usable(120), server.registration.report()
    assert server._model is not None
    layer = server._model._layers[LAYER]
    assert layer.gate is not None
    x = torch.randn(6, server.checkpoint.config.hidden_size).bfloat16()
    forward = moe_forward(LAYER, layer, layer.gate, x, server.router, 0)
    ours, faults = run_forward(server, forward)
    assert not faults
    ours, exact = ours.double(), reference(server.checkpoint, x)
    server.stop(0)
    error = float((ours - exact).norm() / exact.norm())
    print(f"relative error {error:.2e}, of rounding the exact result alone {rounding(exact):.2e}")
    assert error <= 4e-3


def rounding(exact: torch.Tensor) -> float:
    return float((exact.bfloat16().double() - exact).norm() / exact.norm())
