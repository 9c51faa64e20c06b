"""The model's dimensions and constants, from ``config.json``; anything this server would compute wrongly is refused.

Knows nothing of tensors or devices. Supported is the DeepSeek-V3 architecture (``model_type`` kimi_k2 or deepseek_v3)
with INT4 routed experts as ``quantization.py`` describes them. Keys that change nothing here are not looked at.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import CheckpointError
from .json_object import JsonObject, read_json_object
from .mistakes import folder_lacks, folder_lacks_config, path_is
from .quantization import read_group_size
from .rotary import YarnConfig, read_rotary

__all__ = ["CODES_PER_WORD", "CONFIG_FILE", "ModelConfig", "YarnConfig", "read_token_ids"]

CONFIG_FILE = "config.json"
CODES_PER_WORD = 8
_ARCHITECTURE = "DeepseekV3ForCausalLM"
# Every token has a name in memory.
_MAX_VOCAB_SIZE = 1 << 22
SCALE_BYTES = 2
# transformers builds the two norms inside the latent attention with its class default, whatever rms_norm_eps says.
_LATENT_NORM_EPS = 1e-6


@dataclass(frozen=True)
class ModelConfig:
    hidden_size: int
    num_layers: int
    num_dense_layers: int
    intermediate_size: int
    moe_intermediate_size: int
    num_experts: int
    top_k: int
    num_shared_experts: int
    num_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    rope_theta: float
    yarn: YarnConfig | None
    max_position_embeddings: int
    n_group: int
    topk_group: int
    norm_topk_prob: bool
    routed_scaling_factor: float
    rms_norm_eps: float
    latent_norm_eps: float
    vocab_size: int
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
    tie_word_embeddings: bool
    group_size: int
    source: str = field(default=CONFIG_FILE, compare=False, repr=False)

    @classmethod
    def from_dir(cls, directory: Path) -> "ModelConfig":
        if not directory.is_dir():
            raise CheckpointError(directory, "", "is not a directory", path_is(directory))
        if not (file := directory / CONFIG_FILE).exists():
            raise CheckpointError(file, "", "No such file", folder_lacks(file) or folder_lacks_config(directory))
        return _read(read_json_object(file))

    @classmethod
    def from_dict(cls, data: dict[str, Any], file: str = CONFIG_FILE) -> "ModelConfig":
        return _read(JsonObject(file, data))

    def __post_init__(self) -> None:
        problems = [*_shape_problems(self), *_router_problems(self), *_vocabulary_problems(self)]
        if problems:
            raise CheckpointError(self.source, *problems[0])

    @property
    def moe_layers(self) -> range:
        return range(self.num_dense_layers, self.num_layers)

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def latent_width(self) -> int:
        """Values the cache keeps per token and layer."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def shared_width(self) -> int:
        return self.num_shared_experts * self.moe_intermediate_size

    @property
    def expert_bytes(self) -> int:
        """The checkpoint's own bytes of one routed expert: packed codes and scales."""
        num_weights = 3 * self.hidden_size * self.moe_intermediate_size
        return num_weights // 2 + num_weights // self.group_size * SCALE_BYTES


def _read(source: JsonObject) -> ModelConfig:
    _refuse_unsupported(source)
    num_layers = source.integer("num_hidden_layers", maximum=10_000)
    num_dense_layers = source.integer("first_k_dense_replace", minimum=0)
    if num_dense_layers >= num_layers:
        limit = f"must be below num_hidden_layers, {num_layers}: no layer with experts is left"
        raise source.error("first_k_dense_replace", f"{num_dense_layers} {limit}")
    rope_theta, yarn = read_rotary(source)
    config = ModelConfig(
        hidden_size=source.integer("hidden_size"),
        num_layers=num_layers,
        num_dense_layers=num_dense_layers,
        intermediate_size=source.integer("intermediate_size"),
        moe_intermediate_size=source.integer("moe_intermediate_size"),
        num_experts=source.integer("n_routed_experts", maximum=65_535),
        top_k=source.integer("num_experts_per_tok"),
        num_shared_experts=source.integer("n_shared_experts"),
        num_heads=source.integer("num_attention_heads"),
        q_lora_rank=source.integer("q_lora_rank") if source.has("q_lora_rank") else None,
        kv_lora_rank=source.integer("kv_lora_rank"),
        qk_nope_head_dim=source.integer("qk_nope_head_dim"),
        qk_rope_head_dim=source.integer("qk_rope_head_dim"),
        v_head_dim=source.integer("v_head_dim"),
        rope_theta=rope_theta,
        yarn=yarn,
        max_position_embeddings=source.integer("max_position_embeddings"),
        n_group=source.integer("n_group"),
        topk_group=source.integer("topk_group"),
        norm_topk_prob=source.boolean("norm_topk_prob"),
        routed_scaling_factor=source.number("routed_scaling_factor"),
        rms_norm_eps=source.number("rms_norm_eps", maximum=1.0),
        latent_norm_eps=source.number("latent_norm_eps", maximum=1.0, default=_LATENT_NORM_EPS),
        vocab_size=source.integer("vocab_size", maximum=_MAX_VOCAB_SIZE),
        bos_token_id=_token_id(source, "bos_token_id"),
        eos_token_ids=read_token_ids(source, "eos_token_id"),
        pad_token_id=_token_id(source, "pad_token_id"),
        tie_word_embeddings=source.boolean("tie_word_embeddings", default=False),
        group_size=read_group_size(source),
        source=source.file,
    )
    heads = source.integer("num_key_value_heads", default=config.num_heads)
    if heads != config.num_heads:
        raise source.error("num_key_value_heads", f"{heads} must equal num_attention_heads, {config.num_heads}")
    return config


def _refuse_unsupported(source: JsonObject) -> None:
    """Switches that change the arithmetic and have one supported setting; null stands for an absent key."""
    if source.has("text_config"):
        problem = (
            f"checkpoints with a language model among others, such as Kimi-K2.5 ({source.data.get('model_type')!r}), are not "
            f"supported yet; those of {_ARCHITECTURE} alone are, such as Kimi-K2-Thinking"
        )
        raise source.error("text_config", problem)
    source.expect("architectures", [_ARCHITECTURE])
    source.expect("model_type", "kimi_k2", "deepseek_v3")
    source.expect("hidden_act", None, "silu")
    source.expect("attention_bias", None, False)
    source.expect("scoring_func", None, "sigmoid")
    source.expect("topk_method", None, "noaux_tc")
    source.expect("moe_layer_freq", None, 1)
    source.expect("rope_interleave", None, True)


def _token_id(source: JsonObject, key: str) -> int | None:
    return source.integer(key, minimum=0) if source.has(key) else None


def read_token_ids(source: JsonObject, key: str) -> tuple[int, ...]:
    """An id or a list of ids; absent is empty."""
    if not source.has(key):
        return ()
    if not isinstance(source.data[key], list):
        return (source.integer(key, minimum=0),)
    for value in source.items(key):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise source.error(key, f"must hold token ids, holds {value!r}")
    return tuple(source.items(key))


def _shape_problems(config: ModelConfig) -> list[tuple[str, str]]:
    problems = []
    unit = math.lcm(CODES_PER_WORD, config.group_size)
    for key, width in (("hidden_size", config.hidden_size), ("moe_intermediate_size", config.moe_intermediate_size)):
        if width % unit:
            problems.append((key, f"{width} must be a multiple of {unit} (group_size {config.group_size})"))
    if config.qk_rope_head_dim % 2:
        problems.append(("qk_rope_head_dim", f"{config.qk_rope_head_dim} must be even"))
    return problems


def _router_problems(config: ModelConfig) -> list[tuple[str, str]]:
    if config.num_experts % config.n_group:
        return [("n_group", f"{config.n_group} must divide n_routed_experts, {config.num_experts}")]
    group = config.num_experts // config.n_group
    if config.n_group > 1 and group < 2:
        return [("n_group", f"{config.n_group} leaves {group} expert per group, needs 2 or more")]
    if config.topk_group > config.n_group:
        return [("topk_group", f"{config.topk_group} must not exceed n_group, {config.n_group}")]
    if config.top_k > config.topk_group * group:
        limit = f"must not exceed the experts that can be chosen, {config.topk_group * group}"
        return [("num_experts_per_tok", f"{config.top_k} {limit}")]
    return []


def _vocabulary_problems(config: ModelConfig) -> list[tuple[str, str]]:
    limit = f"must be below vocab_size, {config.vocab_size}"
    named = [("bos_token_id", config.bos_token_id), ("pad_token_id", config.pad_token_id)]
    named += [("eos_token_id", token_id) for token_id in config.eos_token_ids]
    return [(key, f"{value} {limit}") for key, value in named if value is not None and value >= config.vocab_size]
