"""Accepts the one quantization that is supported: compressed-tensors ``pack-quantized``, INT4, symmetric, by group.

Knows nothing of the packed bits. 1. Every key that changes a weight's meaning must have its supported setting;
2. the ``ignore`` patterns, applied to the model's own module names, must leave exactly the routed experts quantized;
3. what remains free is the group size, which is returned.
"""

import re
from collections.abc import Iterator

from .json_object import JsonObject

_ATTENTION = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
_FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")


def read_group_size(config: JsonObject) -> int:
    if not config.has("quantization_config"):
        raise config.error("quantization_config", "missing: only INT4 pack-quantized experts are supported")
    quantization = config.object("quantization_config")
    quantization.expect("quant_method", "compressed-tensors")
    quantization.expect("format", "pack-quantized")
    quantization.expect("quantization_status", None, "compressed")
    quantization.expect("kv_cache_scheme", None)
    quantization.expect("sparsity_config", None, {})
    quantization.expect("transform_config", None, {})
    groups = quantization.object("config_groups")
    if len(groups.data) != 1:
        raise quantization.error("config_groups", f"holds {len(groups.data)} groups, must hold 1")
    group_size = _read_group(groups.object(next(iter(groups.data))))
    _check_ignored(config, quantization)
    return group_size


def _read_group(group: JsonObject) -> int:
    group.expect("targets", ["Linear"])
    group.expect("format", None, "pack-quantized")
    group.expect("input_activations", None)
    group.expect("output_activations", None)
    weights = group.object("weights")
    weights.expect("num_bits", 4)
    weights.expect("type", "int")
    weights.expect("symmetric", True)
    weights.expect("strategy", "group")
    weights.expect("dynamic", None, False)
    weights.expect("actorder", None, False)
    weights.expect("block_structure", None)
    weights.expect("scale_dtype", None, "torch.bfloat16", "bfloat16")
    return weights.integer("group_size", maximum=65_536)


def _check_ignored(config: JsonObject, quantization: JsonObject) -> None:
    patterns = _patterns(quantization)
    for name, quantized in _linear_modules(config):
        ignored = any(pattern.match(name) for pattern in patterns)
        if ignored and quantized:
            raise quantization.error("ignore", f"leaves {name} unquantized; routed experts must be INT4")
        if not ignored and not quantized:
            raise quantization.error("ignore", f"does not list {name}; only routed experts may be INT4")


def _patterns(quantization: JsonObject) -> list[re.Pattern[str]]:
    compiled = []
    for entry in quantization.items("ignore"):
        if not isinstance(entry, str):
            raise quantization.error("ignore", f"must hold module names or patterns, holds {entry!r}")
        expression = entry.removeprefix("re:") if entry.startswith("re:") else re.escape(entry) + r"\Z"
        try:
            compiled.append(re.compile(expression))
        except re.error as error:
            raise quantization.error("ignore", f"{entry!r} is not a regular expression: {error}") from error
    return compiled


def _linear_modules(config: JsonObject) -> Iterator[tuple[str, bool]]:
    """``(module name, must be quantized)``; of a layer's experts the first, the second and the last."""
    num_layers, num_dense = config.integer("num_hidden_layers"), config.integer("first_k_dense_replace", minimum=0)
    num_experts = config.integer("n_routed_experts")
    query = _ATTENTION if config.has("q_lora_rank") else ("q_proj", *_ATTENTION[2:])
    yield "lm_head", False
    for layer in range(num_layers):
        prefix = f"model.layers.{layer}"
        for projection in query:
            yield f"{prefix}.self_attn.{projection}", False
        for projection in _FEED_FORWARD:
            if layer < num_dense:
                yield f"{prefix}.mlp.{projection}", False
                continue
            yield f"{prefix}.mlp.shared_experts.{projection}", False
            for expert in {0, min(1, num_experts - 1), num_experts - 1}:
                yield f"{prefix}.mlp.experts.{expert}.{projection}", True
