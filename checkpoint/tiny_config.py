"""The dimensions of a made-up checkpoint and the ``config.json`` that says them, with K2-Thinking's own constants.

Knows nothing of files. A combination that no model can have is refused with the option's name, value and limit.
"""

import dataclasses
from typing import Any

from . import tiny_vocabulary

_GROUP_SIZE = 32
_YARN_FACTOR = 64
_ORIGINAL_CONTEXT = 4096


@dataclasses.dataclass(frozen=True)
class TinyShape:
    """The dimensions to write; the defaults make a model of a few megabytes whose shapes suit every kernel."""

    hidden: int = 256
    layers: int = 4
    dense_layers: int = 1
    experts: int = 64
    top_k: int = 8
    expert_width: int = 128
    dense_width: int = 512
    shared_experts: int = 1
    heads: int = 4
    q_lora_rank: int = 128
    kv_lora_rank: int = 256
    nope_head_dim: int = 64
    rope_head_dim: int = 64
    v_head_dim: int = 64
    groups: int = 1
    topk_groups: int = 1
    vocab: int = 2048
    context: int = _YARN_FACTOR * _ORIGINAL_CONTEXT

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            minimum = 0 if field.name in ("dense_layers", "q_lora_rank") else 1
            if value < minimum:
                raise ValueError(f"{option_name(field.name)} {value}: must be {minimum} or more")
        for name in ("hidden", "expert_width", "dense_width", "q_lora_rank", "kv_lora_rank"):
            value = getattr(self, name)
            if value % _GROUP_SIZE:
                raise ValueError(f"{option_name(name)} {value}: must be a multiple of {_GROUP_SIZE}")
        if self.dense_layers >= self.layers:
            raise ValueError(f"--layers {self.layers}: must exceed --dense-layers, {self.dense_layers}")
        if self.vocab < tiny_vocabulary.MINIMUM:
            raise ValueError(f"--vocab {self.vocab}: must be {tiny_vocabulary.MINIMUM} or more")
        self._check_router()

    def _check_router(self) -> None:
        if self.experts % self.groups or (self.groups > 1 and self.experts < 2 * self.groups):
            raise ValueError(f"--groups {self.groups}: must cut {self.experts} experts into equal groups of 2 or more")
        if self.topk_groups > self.groups:
            raise ValueError(f"--topk-groups {self.topk_groups}: must not exceed --groups, {self.groups}")
        choice = self.experts // self.groups * self.topk_groups
        if self.top_k > choice:
            raise ValueError(f"--top-k {self.top_k}: must not exceed the experts that can be chosen, {choice}")


KIMI_K2_THINKING = TinyShape(
    hidden=7168,
    layers=61,
    experts=384,
    expert_width=2048,
    dense_width=18432,
    heads=64,
    q_lora_rank=1536,
    kv_lora_rank=512,
    nope_head_dim=128,
    v_head_dim=128,
    vocab=163_840,
)
SHAPES = {"kimi-k2-thinking": KIMI_K2_THINKING}


def option_name(field: str) -> str:
    return "--" + field.replace("_", "-")


def config_document(shape: TinyShape) -> dict[str, Any]:
    return {
        "architectures": ["DeepseekV3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": tiny_vocabulary.special_id(shape.vocab, tiny_vocabulary.BOS),
        "eos_token_id": tiny_vocabulary.special_id(shape.vocab, tiny_vocabulary.END_OF_TURN),
        "first_k_dense_replace": shape.dense_layers,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.dense_width,
        "kv_lora_rank": shape.kv_lora_rank,
        "max_position_embeddings": shape.context,
        "model_type": "kimi_k2",
        "moe_intermediate_size": shape.expert_width,
        "moe_layer_freq": 1,
        "n_group": shape.groups,
        "n_routed_experts": shape.experts,
        "n_shared_experts": shape.shared_experts,
        "norm_topk_prob": True,
        "num_attention_heads": shape.heads,
        "num_experts_per_tok": shape.top_k,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.heads,
        "num_nextn_predict_layers": 0,
        "pad_token_id": tiny_vocabulary.special_id(shape.vocab, tiny_vocabulary.PAD),
        "q_lora_rank": shape.q_lora_rank or None,
        "qk_nope_head_dim": shape.nope_head_dim,
        "qk_rope_head_dim": shape.rope_head_dim,
        "quantization_config": _quantization(),
        "rms_norm_eps": 1e-5,
        "rope_scaling": {
            "beta_fast": 1.0,
            "beta_slow": 1.0,
            "factor": float(max(_YARN_FACTOR, -(-shape.context // _ORIGINAL_CONTEXT))),
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": _ORIGINAL_CONTEXT,
            "type": "yarn",
        },
        "rope_theta": 50000.0,
        "routed_scaling_factor": 2.827,
        "scoring_func": "sigmoid",
        "tie_word_embeddings": False,
        "topk_group": shape.topk_groups,
        "topk_method": "noaux_tc",
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "v_head_dim": shape.v_head_dim,
        "vocab_size": shape.vocab,
    }


def _quantization() -> dict[str, Any]:
    weights: dict[str, Any] = {
        "actorder": None,
        "block_structure": None,
        "dynamic": False,
        "group_size": _GROUP_SIZE,
        "num_bits": 4,
        "observer": "minmax",
        "observer_kwargs": {},
        "strategy": "group",
        "symmetric": True,
        "type": "int",
    }
    group = {"input_activations": None, "output_activations": None, "targets": ["Linear"], "weights": weights}
    return {
        "config_groups": {"group_0": group},
        "format": "pack-quantized",
        "ignore": [
            "lm_head",
            "re:.*self_attn.*",
            "re:.*shared_experts.*",
            "re:.*mlp\\.(gate|up|gate_up|down)_proj.*",
        ],
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    }
