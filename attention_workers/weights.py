"""Builds the model from the checkpoint's bytes: everything but the routed experts.

Knows nothing of forward passes. Each tensor is read by byte range, cast to the worker's dtype, and given to the row-exact
kernels under the rules that the numerics self-test chose.
"""

from collections.abc import Callable

import torch

from ..checkpoint.model_config import ModelConfig
from ..checkpoint.tensors import Checkpoint
from ..kernels.batch_invariant_linear import (
    BatchInvariantHeads,
    BatchInvariantLinear,
    BatchInvariantScores,
    heads_rule,
    linear_rule,
)
from ..kernels.mla import attention_rule
from ..kernels.numerics import AttentionShapes
from ..kernels.rope import RopeTable, rope_table, softmax_scale
from ..kernels.row_rule import RuleCache
from ..kernels.top_k_gate import TopKGate
from ..router.dispatch.gate import Gate
from .model import Attention, Layer, Mlp, Model

# The products that take the normalised hidden row; the second is missing where queries have no low rank.
DOWN = ("kv_a_proj_with_mqa", "q_a_proj")


class Loader:
    """Reads one checkpoint into one model; ``bytes_loaded`` grows while it works."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        rules: RuleCache,
        dtype: torch.dtype,
        max_model_len: int,
        stop: Callable[[], bool],
    ) -> None:
        self.bytes_loaded = 0
        self.bytes_total = sum(checkpoint.info(name).num_bytes for name in dense_tensors(checkpoint))
        self._checkpoint = checkpoint
        self._config = checkpoint.config
        self._rules = rules
        self._dtype = dtype
        self._max_model_len = max_model_len
        self._stop = stop

    def load(self) -> Model:
        """Raises CheckpointError, and InterruptedError once ``stop()`` is true."""
        config = self._config
        rope = self._rope()
        embedding = self._tensor("model.embed_tokens.weight")
        layers = [self._layer(index) for index in range(config.num_layers)]
        norm = self._tensor("model.norm.weight")
        head = embedding if config.tie_word_embeddings else self._tensor("lm_head.weight")
        return Model(config, embedding, layers, norm, self._exact(head), rope)

    def _layer(self, index: int) -> Layer:
        name = f"model.layers.{index}"
        dense = index < self._config.num_dense_layers
        return Layer(
            attention_norm=self._tensor(f"{name}.input_layernorm.weight"),
            attention=self._attention(index, f"{name}.self_attn"),
            mlp_norm=self._tensor(f"{name}.post_attention_layernorm.weight"),
            mlp=self._mlp(f"{name}.mlp" if dense else f"{name}.mlp.shared_experts"),
            gate=None if dense else self._gate(f"{name}.mlp.gate"),
        )

    def _attention(self, index: int, name: str) -> Attention:
        config = self._config
        low_rank = config.q_lora_rank is not None
        up = self._tensor(f"{name}.kv_b_proj.weight")
        up = up.view(config.num_heads, config.qk_nope_head_dim + config.v_head_dim, config.kv_lora_rank)
        keys, values = up[:, : config.qk_nope_head_dim], up[:, config.qk_nope_head_dim :]
        return Attention(
            config=config,
            layer=index,
            down=self._linear(*[f"{name}.{part}.weight" for part in DOWN[: 1 + low_rank]]),
            kv_norm=self._tensor(f"{name}.kv_a_layernorm.weight"),
            q_norm=self._tensor(f"{name}.q_a_layernorm.weight") if low_rank else None,
            q_up=self._linear(f"{name}.q_b_proj.weight" if low_rank else f"{name}.q_proj.weight"),
            absorb_key=self._heads(keys),
            absorb_value=self._heads(values.transpose(1, 2)),
            out=self._linear(f"{name}.o_proj.weight"),
            scale=softmax_scale(config.qk_head_dim, config.yarn),
            rule=attention_rule(self._rules, config.kv_lora_rank, config.qk_rope_head_dim, self._dtype),
        )

    def _mlp(self, name: str) -> Mlp:
        gate_up = self._linear(f"{name}.gate_proj.weight", f"{name}.up_proj.weight")
        return Mlp(gate_up, self._linear(f"{name}.down_proj.weight"))

    def _gate(self, name: str) -> Gate:
        return Gate(
            BatchInvariantScores(self._stored(f"{name}.weight"), self._rules),
            self._tensor(f"{name}.e_score_correction_bias", torch.float32),
            gate_choice(self._config),
        )

    def _rope(self) -> RopeTable:
        config = self._config
        return rope_table(self._max_model_len, config.qk_rope_head_dim, config.rope_theta, config.yarn)

    def _linear(self, *names: str) -> BatchInvariantLinear:
        """One linear of the named weights, one below the other: products of the same rows cost one call."""
        return self._exact(torch.cat([self._tensor(name) for name in names]))

    def _exact(self, weight: torch.Tensor) -> BatchInvariantLinear:
        num_out, num_in = weight.shape
        return BatchInvariantLinear(weight, linear_rule(self._rules, num_out, num_in, weight.dtype))

    def _heads(self, weight: torch.Tensor) -> BatchInvariantHeads:
        num_heads, num_in, num_out = weight.shape
        return BatchInvariantHeads(weight, heads_rule(self._rules, num_heads, num_in, num_out, weight.dtype))

    def _tensor(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        return self._stored(name).to(dtype or self._dtype)

    def _stored(self, name: str) -> torch.Tensor:
        if self._stop():
            raise InterruptedError("loading was interrupted")
        self.bytes_loaded += self._checkpoint.info(name).num_bytes
        return self._checkpoint.read(name)


def dense_tensors(checkpoint: Checkpoint) -> list[str]:
    """The tensors that an attention worker reads: all of the model's layers but the routed experts."""
    config = checkpoint.config
    layers = tuple(f"model.layers.{index}." for index in range(config.num_layers))
    outer = ["model.embed_tokens.weight", "model.norm.weight"]
    if not config.tie_word_embeddings:
        outer.append("lm_head.weight")
    return [name for name in checkpoint.tensors if name.startswith(layers) and ".mlp.experts." not in name] + outer


def gate_choice(config: ModelConfig) -> TopKGate:
    """What each gate chooses."""
    return TopKGate(
        config.top_k, config.n_group, config.topk_group, config.norm_topk_prob, config.routed_scaling_factor
    )


def attention_shapes(config: ModelConfig) -> AttentionShapes:
    """Every product that the worker computes, as the numerics self-test takes them."""
    heads, H = config.num_heads, config.hidden_size
    rank = config.q_lora_rank
    linears = {
        (heads * config.qk_head_dim, rank or H),
        (config.latent_width + (rank or 0), H),
        (H, heads * config.v_head_dim),
        (config.vocab_size, H),
    }
    for width in (config.shared_width, *([config.intermediate_size] if config.num_dense_layers else [])):
        linears |= {(2 * width, H), (H, width)}
    norms = {H, config.kv_lora_rank} | ({rank} if rank is not None else set())
    return AttentionShapes(
        linears=tuple(sorted(linears)),
        gates=((config.num_experts, H),),
        num_heads=heads,
        nope_width=config.qk_nope_head_dim,
        value_width=config.v_head_dim,
        num_latent=config.kv_lora_rank,
        num_rope=config.qk_rope_head_dim,
        norm_widths=tuple(sorted(norms)),
    )
