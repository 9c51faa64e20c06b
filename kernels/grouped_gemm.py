"""Experts applied to routes: y[n] = W2·(silu(W1·x[row_n]) ⊙ W3·x[row_n]) with the weights of route n's expert.

Knows nothing of gates, routing weights or the wire. The contract, which every backend keeps:
- x is [R, H] bf16 or float32, a route is (row, expert), the result is [N, H] in x's dtype and in the order of the routes;
- a route's bits depend on its row and its expert alone, never on the other routes, their number or their order;
- finite rows and weights whose products fit the dtype give finite results; non-finite rows are the caller's business;
- no routes give an empty result, experts without routes cost nothing.
"""

from collections.abc import Mapping

import torch

from . import int4
from .expert_backend import ExpertBackend, make_backend
from .expert_layer import ExpertLayer, Projection

__all__ = ["ExpertBackend", "ExpertLayer", "grouped_gemm", "grouped_gemm_reference", "make_backend"]


def grouped_gemm(
    x: torch.Tensor,  # [R, H]
    route_rows: torch.Tensor,  # [N] int64
    route_experts: torch.Tensor,  # [N] int64
    layer: ExpertLayer,
) -> torch.Tensor:  # [N, H]
    """Checks its arguments and applies the layer; a shard, whose rows lie at addresses, calls ``layer.apply_at``."""
    num_rows, hidden = x.shape
    num_routes = route_rows.shape[0]
    assert hidden == layer.shape.hidden, f"rows have {hidden} values, the layer {layer.shape.hidden}"
    assert x.dtype is layer.dtype, f"x is {x.dtype}, the layer {layer.dtype}"
    assert route_experts.shape == (num_routes,), f"{num_routes} rows, {tuple(route_experts.shape)} experts"
    out = x.new_empty((num_routes, hidden))
    if num_routes == 0:
        return out
    layer.check_routes(num_rows, route_rows, route_experts)
    layer.apply(x, route_rows, route_experts, out)
    return out


def grouped_gemm_reference(
    x: torch.Tensor,  # [R, H]
    route_rows: torch.Tensor,  # [N] int64
    route_experts: torch.Tensor,  # [N] int64
    experts: Mapping[int, tuple[Projection, Projection, Projection]],  # the checkpoint's gate, up, down
) -> torch.Tensor:  # [N, H] float64
    """The same in float64 on exactly dequantised weights, expert by expert."""
    result = torch.empty((route_rows.shape[0], x.shape[1]), dtype=torch.float64)
    for expert_id in sorted(set(route_experts.tolist())):
        places = (route_experts == expert_id).nonzero()[:, 0]
        w1, w3, w2 = (int4.dequantize(*projection, torch.float64) for projection in experts[expert_id])
        rows = x[route_rows[places]].double()
        result[places] = (torch.nn.functional.silu(rows @ w1.t()) * (rows @ w3.t())) @ w2.t()
    return result
