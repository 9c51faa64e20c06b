"""Accepts the one quantization that is supported: compressed-tensors ``pack-quantized``, INT4, symmetric, by group.

Knows nothing of the packed bits. 1. ``recipe.py`` says which group of the recipe each module of the model belongs to;
2. exactly the routed experts must belong to one; 3. every key of such a group that changes a weight's meaning must have
its supported setting, however it is spelled; 4. what remains free is the group size, which is returned.
"""

import itertools
import json
import re
from typing import Any

from .errors import CheckpointError
from .json_object import JsonObject
from .recipe import Module, Recipe, modules

# What the experts' kernels take.
GROUP_UNIT = 32
_MAX_GROUP_SIZE = 65_536
_FORMAT = "pack-quantized"
_SUPPORTED = "INT4 pack-quantized experts, as Kimi-K2-Thinking is published"
_GROUP_KEYS = {"targets", "weights", "input_activations", "output_activations", "format"}
_WEIGHT_KEYS = {
    "num_bits",
    "type",
    "symmetric",
    "strategy",
    "group_size",
    "dynamic",
    "actorder",
    "block_structure",
    "scale_dtype",
    # These say how the codes were found, or what belongs to codes that are not symmetric.
    "observer",
    "observer_kwargs",
    "zp_dtype",
}


def read_group_size(config: JsonObject) -> int:
    quantization = _section(config)
    _check_whole(quantization)
    recipe = Recipe(quantization)
    sizes: dict[str, int] = {}
    for module in modules(config):
        group = recipe.group_of(module)
        if group is None and module.is_expert:
            raise _unquantized(quantization, recipe, module)
        if group is not None and not module.is_expert:
            problem = f"does not list {module.name}, which group {group} targets; only routed experts may be INT4"
            raise quantization.error("ignore", problem)
        if group is not None and group not in sizes:
            sizes[group] = _read_group(quantization, recipe.groups[group])
    if len(set(sizes.values())) > 1:
        raise quantization.error("config_groups", f"experts have the group sizes {sizes}, must have one")
    return next(iter(sizes.values()))


def _section(config: JsonObject) -> JsonObject:
    """Under its own key or the one that older versions wrote, and perhaps a level deeper."""
    given = [key for key in ("quantization_config", "compression_config") if config.has(key)]
    if not given:
        raise config.error("quantization_config", f"missing: only {_SUPPORTED}, are supported")
    if len(given) > 1 and config.data[given[0]] != config.data[given[1]]:
        raise config.error(given[1], f"contradicts {given[0]}")
    section = config.object(given[0])
    return section.object("quantization_config") if section.has("quantization_config") else section


def _check_whole(quantization: JsonObject) -> None:
    method = quantization.data.get("quant_method")
    if method is not None and _hyphenated(method) != "compressed-tensors":
        problem = f'{json.dumps(method)} is not supported (must be "compressed-tensors": {_SUPPORTED})'
        raise quantization.error("quant_method", problem)
    # Early versions wrote "frozen" for packed weights as well; the tensors' names tell.
    quantization.expect("quantization_status", None, "compressed", "frozen")
    quantization.expect("kv_cache_scheme", None)
    quantization.expect("moe_sparsity_config", None, {})
    quantization.expect("transform_config", None, {}, {"config_groups": {}})
    sparsity = quantization.data.get("sparsity_config")
    if not (isinstance(sparsity, dict) and sparsity.get("format") == "dense"):
        quantization.expect("sparsity_config", None, {})


def _unquantized(quantization: JsonObject, recipe: Recipe, module: Module) -> CheckpointError:
    if recipe.ignores(module):
        return quantization.error("ignore", f"leaves {module.name} unquantized; routed experts must be INT4")
    first = ", ".join(map(json.dumps, itertools.islice(recipe.targets, 3))) or "none"
    more = f" and {len(recipe.targets) - 3} more" if len(recipe.targets) > 3 else ""
    problem = f"no target matches {module.name} (there is {first}{more}); routed experts must be INT4"
    return quantization.error("config_groups", problem)


def _read_group(quantization: JsonObject, group: JsonObject) -> int:
    _refuse_unknown(group, _GROUP_KEYS)
    # A group without a format of its own has that of the whole.
    (group if group.has("format") else quantization).expect("format", _FORMAT, read=_hyphenated)
    group.expect("input_activations", None)
    group.expect("output_activations", None)
    weights = group.object("weights")
    _refuse_unknown(weights, _WEIGHT_KEYS)
    weights.expect("num_bits", 4, read=_number)
    weights.expect("type", None, "int", read=_lower)
    weights.expect("symmetric", None, True, read=_switch)
    # Without a strategy the group size says which.
    weights.expect("strategy", None, "group", read=_lower)
    weights.expect("dynamic", None, False, read=_switch)
    # In these two the columns' order mattered when the codes were found, and in the file it is the model's own.
    weights.expect("actorder", None, False, "weight", "static", read=_lower)
    weights.expect("block_structure", None)
    weights.expect("scale_dtype", None, "torch.bfloat16", "bfloat16")
    given = JsonObject(weights.file, {"group_size": _number(weights.data.get("group_size"))}, weights.prefix)
    size = given.integer("group_size", minimum=-1, maximum=_MAX_GROUP_SIZE)
    if size < GROUP_UNIT or size % GROUP_UNIT:
        raise weights.error("group_size", f"{size} is not supported (must be a multiple of {GROUP_UNIT})")
    return size


# compressed-tensors reads 4.0 and "4" as 4, 1 and "true" as true, and names in any case.


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _hyphenated(value: Any) -> Any:
    return value.lower().replace("_", "-") if isinstance(value, str) else value


def _switch(value: Any) -> Any:
    return next((on for on in (False, True) if _lower(value) in (int(on), str(on).lower())), value)


def _number(value: Any) -> Any:
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,9}", value):
        return int(value)
    return int(value) if isinstance(value, float) and abs(value) < 1 << 31 and value.is_integer() else value


def _refuse_unknown(source: JsonObject, known: set[str]) -> None:
    """As compressed-tensors does itself: who knows what it would mean."""
    for key, value in source.data.items():
        if key not in known and value not in (None, {}, []):
            raise source.error(key, f"{json.dumps(value)} is not supported (the key is not known)")
