"""K2's architecture in plain PyTorch for training: MLA, YaRN, and top-8 of many experts beside a shared one.

Knows nothing of data or optimizers. Parameters have the names of the checkpoint, but a layer's experts are stacked:
``gate_up`` [experts, hidden, 2 · width] and ``down`` [experts, width, hidden]. Weights are used as bfloat16 holds them and
multiplied in ``product_dtype``; all else is float32. With ``quantized`` set the experts' weights are what their INT4 form
dequantises to, and gradients pass through unchanged (straight-through).
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...checkpoint.model_config import ModelConfig
from ...kernels.rope import RopeTable, apply_rope, rope_table, softmax_scale
from .precision import as_stored, product_dtype

_INIT = 0.02
_LONG = 1024
_CAPACITY_STEP = 128


def quantize(weight: torch.Tensor, group_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """weight [..., in, out] as codes -8..7 int8 of the same shape, and bfloat16 scales [..., in / group, out].

    Symmetric, by groups along the in features; the largest magnitude of a group is 7.5 steps, as compressed-tensors'
    min-max observer has it.
    """
    *outer, columns, rows = weight.shape
    grouped = weight.view(*outer, columns // group_size, group_size, rows)
    scale = (grouped.abs().amax(-2, keepdim=True) / 7.5).clamp(min=1e-8).bfloat16()
    codes = (grouped / scale.float()).round().clamp(-8, 7)
    return codes.to(torch.int8).flatten(-3, -2), scale.squeeze(-2)


def dequantize(codes: torch.Tensor, scale: torch.Tensor, group_size: int) -> torch.Tensor:
    return codes.float() * scale.float().repeat_interleave(group_size, dim=-2)


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self._eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight, self._eps)


class Linear(nn.Module):
    """No bias; ``product_dtype`` product of a float32 weight [out, in]."""

    weight: nn.Parameter

    def __init__(self, columns: int, rows: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(rows, columns) * _INIT)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x.to(product_dtype(x.device)), as_stored(self.weight))


class FeedForward(nn.Module):
    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = Linear(hidden, width), Linear(hidden, width)
        self.down_proj = Linear(width, hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.to(product_dtype(x.device))
        down: torch.Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return down


class Attention(nn.Module):
    """MLA, unabsorbed, over whole rows [rows, length, hidden]."""

    def __init__(self, config: ModelConfig, table: RopeTable) -> None:
        super().__init__()
        self._config, self._table = config, table
        assert config.q_lora_rank is not None
        heads, eps = config.num_heads, config.latent_norm_eps
        self.q_a_proj = Linear(config.hidden_size, config.q_lora_rank)
        self.q_a_layernorm = RMSNorm(config.q_lora_rank, eps)
        self.q_b_proj = Linear(config.q_lora_rank, heads * config.qk_head_dim)
        self.kv_a_proj_with_mqa = Linear(config.hidden_size, config.kv_lora_rank + config.qk_rope_head_dim)
        self.kv_a_layernorm = RMSNorm(config.kv_lora_rank, eps)
        self.kv_b_proj = Linear(config.kv_lora_rank, heads * (config.qk_nope_head_dim + config.v_head_dim))
        self.o_proj = Linear(heads * config.v_head_dim, config.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        config = self._config
        rows, length, _ = x.shape
        nope, rope, value = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
        query = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x))).view(rows, length, -1, nope + rope)
        latent, shared_key = self.kv_a_proj_with_mqa(x).split([config.kv_lora_rank, rope], dim=-1)
        keys_values = self.kv_b_proj(self.kv_a_layernorm(latent)).view(rows, length, -1, nope + value)
        positions = torch.arange(length, device=x.device).repeat(rows)
        turned_query = apply_rope(query[..., nope:].flatten(0, 1), positions, self._table).view(rows, length, -1, rope)
        turned_key = apply_rope(shared_key.flatten(0, 1), positions, self._table).view(rows, length, 1, rope)
        query = torch.cat((query[..., :nope], turned_query), dim=-1).transpose(1, 2)
        turned_key = turned_key.expand(-1, -1, config.num_heads, -1)
        key = torch.cat((keys_values[..., :nope], turned_key), dim=-1).transpose(1, 2)
        mixed = _attend(query, key, keys_values[..., nope:].transpose(1, 2), softmax_scale(nope + rope, config.yarn))
        attended: torch.Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return attended


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """Causal attention [rows, heads, length, ·]; rows short enough are multiplied out, which is faster on CPU."""
    length, width = query.shape[2], value.shape[3]
    if query.is_cuda or length > _LONG:
        padded = F.pad(value, (0, query.shape[3] - width))
        return F.scaled_dot_product_attention(query, key, padded, is_causal=True, scale=scale)[..., :width]
    mask = torch.full((length, length), -math.inf, dtype=query.dtype).triu(1)
    heads = query.shape[0] * query.shape[1]
    scores = torch.baddbmm(
        mask.expand(heads, -1, -1), query.flatten(0, 1), key.flatten(0, 1).transpose(1, 2), alpha=scale
    )
    return (scores.softmax(-1) @ value.flatten(0, 1)).view(value.shape)


class _Take(torch.autograd.Function):
    """Rows ``taken`` of x [N, H], for which ``given`` says where each row went, ``times`` times in a row.

    The way back is a gather as well, which is much faster on CPU than a scatter.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, taken: torch.Tensor, given: torch.Tensor, times: int) -> torch.Tensor:
        ctx.save_for_backward(given)
        ctx.times = times
        return x.index_select(0, taken)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (given,) = ctx.saved_tensors
        grad = grad.index_select(0, given)
        return grad if ctx.times == 1 else grad.view(-1, ctx.times, grad.shape[1]).sum(1), None, None, None


def _take(x: torch.Tensor, taken: torch.Tensor, given: torch.Tensor, times: int) -> torch.Tensor:
    rows: torch.Tensor = _Take.apply(x, taken, given, times)  # type: ignore[no-untyped-call]
    return rows


class Experts(nn.Module):
    def __init__(self, num_experts: int, hidden: int, width: int, group_size: int) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.randn(num_experts, hidden, 2 * width) * _INIT)
        self.down = nn.Parameter(torch.randn(num_experts, width, hidden) * _INIT)
        self.quantized = False
        self._group_size = group_size

    def forward(self, x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """x [N, hidden]; chosen and weights [N, top_k] → [N, hidden]."""
        top_k = chosen.shape[1]
        route_of, place_of, filled = _slots(chosen.flatten(), len(self.down))
        spread = _take(x.to(product_dtype(x.device)), route_of // top_k, place_of, top_k).view(
            len(self.down), -1, x.shape[1]
        )
        gate, up = torch.bmm(spread, self._used(self.gate_up)).chunk(2, dim=-1)
        # A weight of nothing keeps the empty places out of every gradient.
        weighted = _take(weights.flatten()[:, None], route_of, place_of, 1) * filled[:, None]
        inner = F.silu(gate) * up * weighted.to(up.dtype).view(*gate.shape[:2], 1)
        routes = _take(torch.bmm(inner, self._used(self.down)).flatten(0, 1), place_of, route_of, 1)
        return routes.view(-1, top_k, x.shape[1]).sum(1)

    def _used(self, weight: torch.Tensor) -> torch.Tensor:
        if not self.quantized:
            return as_stored(weight)
        with torch.no_grad():
            change = dequantize(*quantize(weight, self._group_size), self._group_size) - weight
        return as_stored(weight + change)


def _slots(experts: torch.Tensor, num_experts: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A place in [experts, capacity] for each of the routes [R]; the capacity is the busiest expert's, rounded up.

    Rounded, because every shape of a product is prepared once. Returns the route in every place [experts · capacity],
    the place of every route [R], and which places hold a route.
    """
    counts = torch.bincount(experts, minlength=num_experts)
    capacity = -(-int(counts.max()) // _CAPACITY_STEP) * _CAPACITY_STEP
    order = experts.argsort()
    of_order = experts[order]
    first = counts.cumsum(0) - counts
    place = of_order * capacity + torch.arange(len(experts), device=experts.device) - first[of_order]
    route_of = torch.zeros(num_experts * capacity, dtype=torch.long, device=experts.device)
    filled = torch.zeros_like(route_of, dtype=torch.float32)
    route_of[place], filled[place] = order, 1.0
    place_of = torch.empty_like(order)
    place_of[order] = place
    return route_of, place_of, filled


class MixtureOfExperts(nn.Module):
    """``loads`` [experts] counts this module's routes since it was last zeroed."""

    loads: torch.Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self._config = config
        self.gate = Gate(config.num_experts, config.hidden_size)
        self.experts = Experts(config.num_experts, config.hidden_size, config.moe_intermediate_size, config.group_size)
        self.shared_experts = FeedForward(config.hidden_size, config.moe_intermediate_size * config.num_shared_experts)
        self.register_buffer("loads", torch.zeros(config.num_experts), persistent=False)

    def forward(self, x: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(0, 1)
        scores = F.linear(flat, self.gate.weight).sigmoid()
        chosen = (scores.detach() + self.gate.e_score_correction_bias).topk(self._config.top_k, dim=-1).indices
        weights = scores.gather(1, chosen)
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20) * self._config.routed_scaling_factor
        self.loads += torch.bincount(chosen[present.flatten()].flatten(), minlength=len(self.loads))
        mixed: torch.Tensor = self.experts(flat, chosen, weights).view(x.shape) + self.shared_experts(x)
        return mixed


class Gate(nn.Module):
    e_score_correction_bias: torch.Tensor

    def __init__(self, num_experts: int, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_experts, hidden) * _INIT)
        self.register_buffer("e_score_correction_bias", torch.zeros(num_experts))


class Layer(nn.Module):
    def __init__(self, config: ModelConfig, index: int, table: RopeTable) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, table)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp: nn.Module = (
            MixtureOfExperts(config)
            if index in config.moe_layers
            else FeedForward(config.hidden_size, config.intermediate_size)
        )

    def forward(self, x: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        normed = self.post_attention_layernorm(x)
        mixed = self.mlp(normed, present) if isinstance(self.mlp, MixtureOfExperts) else self.mlp(normed)
        out: torch.Tensor = x + mixed.float()
        return out


class Stack(nn.Module):
    def __init__(self, config: ModelConfig, max_length: int) -> None:
        super().__init__()
        table = rope_table(max_length, config.qk_rope_head_dim, config.rope_theta, config.yarn)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        nn.init.normal_(self.embed_tokens.weight, std=config.hidden_size**-0.5)
        # One value that all tokens share stands in for the biases that this architecture has not.
        nn.init.constant_(self.embed_tokens.weight[:, 0], 4 * config.hidden_size**-0.5)
        self.layers = nn.ModuleList(Layer(config, index, table) for index in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class NanoK2(nn.Module):
    """The output's matrix is the embedding's times a square one, so that to copy a token is learned for all at once.

    The embedding is multiplied by the root of the hidden size, which lets a token's identity outweigh what the first
    layers add to it (Vaswani et al., 2017, section 3.4). ``embed_and_head`` gives the two matrices of K2's format.
    """

    def __init__(self, config: ModelConfig, max_length: int) -> None:
        super().__init__()
        self.model = Stack(config, max_length)
        self.output_map = Linear(config.hidden_size, config.hidden_size)
        self._embedding_scale = config.hidden_size**0.5
        _zero_outputs(self)

    def forward(self, ids: torch.Tensor, present: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """ids [rows, length] → float32 logits [places, vocabulary] at ``wanted`` [places] int64 of all rows in turn."""
        last = self.output_map(self.hidden(ids, present).flatten(0, 1)[wanted])
        return F.linear(last, as_stored(self.model.embed_tokens.weight)).float()

    def hidden(self, ids: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """ids [rows, length] → what the head sees, [rows, length, hidden]; places not ``present`` count for no load."""
        x = self.model.embed_tokens(ids) * self._embedding_scale
        for layer in self.model.layers:
            x = layer(x, present)
        normed: torch.Tensor = self.model.norm(x)
        return normed

    def embed_and_head(self) -> tuple[torch.Tensor, torch.Tensor]:
        """``embed_tokens`` and ``lm_head`` [vocabulary, hidden] float32."""
        embedding = self.model.embed_tokens.weight.detach()
        return embedding * self._embedding_scale, embedding @ self.output_map.weight.detach()

    def mixtures(self) -> list[MixtureOfExperts]:
        return [module for module in self.modules() if isinstance(module, MixtureOfExperts)]

    def quantize_experts(self, quantized: bool) -> None:
        for mixture in self.mixtures():
            mixture.experts.quantized = quantized


def _zero_outputs(model: nn.Module) -> None:
    """Every layer begins as doing nothing, so that the first gradients are those of the embeddings."""
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight", "experts.down", "output_map.weight")):
            nn.init.zeros_(parameter)
