"""Name, shape and allowed dtypes of every tensor of a checkpoint: the one place where a tensor's name is spelled.

Knows nothing of files. Shapes are [out features, in features]; INT4 weights lie eight codes to an int32 along the
in features, with one scale per group of them.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

from .model_config import CODES_PER_WORD, ModelConfig

Kind = Literal["weight", "norm", "gate", "gate_bias", "packed", "scale", "shape"]

_DTYPES: dict[Kind, tuple[str, ...]] = {
    "weight": ("BF16",),
    "norm": ("BF16",),
    "gate": ("BF16", "F32"),
    "gate_bias": ("F32", "BF16"),
    "packed": ("I32",),
    "scale": ("BF16",),
    "shape": ("I32", "I64"),
}


class TensorSpec(NamedTuple):
    name: str
    shape: tuple[int, ...]
    kind: Kind

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Allowed, the usual one first."""
        return _DTYPES[self.kind]


class ExpertProjection(NamedTuple):
    """One INT4 matrix [rows, columns] of an expert."""

    name: str
    rows: int
    columns: int

    @property
    def packed(self) -> str:
        return f"{self.name}.weight_packed"

    @property
    def scale(self) -> str:
        return f"{self.name}.weight_scale"

    @property
    def shape(self) -> str:
        return f"{self.name}.weight_shape"


def all_tensors(config: ModelConfig) -> Iterator[TensorSpec]:
    yield from outer_tensors(config)
    for layer in range(config.num_layers):
        yield from layer_tensors(config, layer)


def outer_tensors(config: ModelConfig) -> Iterator[TensorSpec]:
    yield TensorSpec("model.embed_tokens.weight", (config.vocab_size, config.hidden_size), "weight")
    yield TensorSpec("model.norm.weight", (config.hidden_size,), "norm")
    if not config.tie_word_embeddings:
        yield TensorSpec("lm_head.weight", (config.vocab_size, config.hidden_size), "weight")


def layer_tensors(config: ModelConfig, layer: int) -> Iterator[TensorSpec]:
    prefix = f"model.layers.{layer}"
    yield TensorSpec(f"{prefix}.input_layernorm.weight", (config.hidden_size,), "norm")
    yield TensorSpec(f"{prefix}.post_attention_layernorm.weight", (config.hidden_size,), "norm")
    yield from _attention(config, f"{prefix}.self_attn")
    if layer < config.num_dense_layers:
        yield from _feed_forward(config, f"{prefix}.mlp", config.intermediate_size)
        return
    yield TensorSpec(f"{prefix}.mlp.gate.weight", (config.num_experts, config.hidden_size), "gate")
    yield TensorSpec(f"{prefix}.mlp.gate.e_score_correction_bias", (config.num_experts,), "gate_bias")
    yield from _feed_forward(config, f"{prefix}.mlp.shared_experts", config.shared_width)
    for expert in range(config.num_experts):
        yield from _expert(config, layer, expert)


def expert_projections(config: ModelConfig, layer: int, expert: int) -> tuple[ExpertProjection, ...]:
    """Gate, up and down."""
    prefix = f"model.layers.{layer}.mlp.experts.{expert}"
    width, hidden = config.moe_intermediate_size, config.hidden_size
    return (
        ExpertProjection(f"{prefix}.gate_proj", width, hidden),
        ExpertProjection(f"{prefix}.up_proj", width, hidden),
        ExpertProjection(f"{prefix}.down_proj", hidden, width),
    )


def _expert(config: ModelConfig, layer: int, expert: int) -> Iterator[TensorSpec]:
    for projection in expert_projections(config, layer, expert):
        rows, columns = projection.rows, projection.columns
        yield TensorSpec(projection.packed, (rows, columns // CODES_PER_WORD), "packed")
        yield TensorSpec(projection.scale, (rows, columns // config.group_size), "scale")
        yield TensorSpec(projection.shape, (2,), "shape")


def _attention(config: ModelConfig, prefix: str) -> Iterator[TensorSpec]:
    hidden, heads, rank = config.hidden_size, config.num_heads, config.kv_lora_rank
    if config.q_lora_rank is None:
        yield TensorSpec(f"{prefix}.q_proj.weight", (heads * config.qk_head_dim, hidden), "weight")
    else:
        yield TensorSpec(f"{prefix}.q_a_proj.weight", (config.q_lora_rank, hidden), "weight")
        yield TensorSpec(f"{prefix}.q_a_layernorm.weight", (config.q_lora_rank,), "norm")
        yield TensorSpec(f"{prefix}.q_b_proj.weight", (heads * config.qk_head_dim, config.q_lora_rank), "weight")
    yield TensorSpec(f"{prefix}.kv_a_proj_with_mqa.weight", (config.latent_width, hidden), "weight")
    yield TensorSpec(f"{prefix}.kv_a_layernorm.weight", (rank,), "norm")
    up_rows = heads * (config.qk_nope_head_dim + config.v_head_dim)
    yield TensorSpec(f"{prefix}.kv_b_proj.weight", (up_rows, rank), "weight")
    yield TensorSpec(f"{prefix}.o_proj.weight", (hidden, heads * config.v_head_dim), "weight")


def _feed_forward(config: ModelConfig, prefix: str, width: int) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{prefix}.gate_proj.weight", (width, config.hidden_size), "weight")
    yield TensorSpec(f"{prefix}.up_proj.weight", (width, config.hidden_size), "weight")
    yield TensorSpec(f"{prefix}.down_proj.weight", (config.hidden_size, width), "weight")
