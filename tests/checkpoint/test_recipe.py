"""Recipes mean what compressed-tensors makes of them: that library is asked, and packs checkpoints by them."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
from safetensors.torch import load_file, save_file

from expertfleet.checkpoint.check import check
from expertfleet.checkpoint.files import SINGLE_FILE
from expertfleet.checkpoint.json_object import JsonObject
from expertfleet.checkpoint.recipe import Recipe, modules
from expertfleet.checkpoint.tensors import Checkpoint

EXPERTS = "re:.*mlp\\.experts\\..*"
K2_IGNORES = ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", "re:.*mlp\\.(gate|up|gate_up|down)_proj.*"]
INT4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
INT8 = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
ONE = "model.layers.1.mlp.experts.3.up_proj"
EXPERT_NAMES = [
    f"model.layers.{layer}.mlp.experts.{expert}.{projection}_proj"
    for layer in (1, 2)
    for expert in range(8)
    for projection in ("gate", "up", "down")
]


def group(*targets: str, weights: dict[str, Any] | None = None, **keys: Any) -> dict[str, Any]:
    return {"targets": list(targets), "weights": weights or INT4, "format": "pack-quantized", **keys}


class Empty(torch.nn.Module):
    """What holds other modules."""


def put(root: torch.nn.Module, name: str, module: torch.nn.Module) -> None:
    *path, last = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, Empty())
        root = root.get_submodule(part)
    root.add_module(last, module)


def resolved_by_the_library(config: dict[str, Any], quantization: dict[str, Any]) -> dict[str, int]:
    """Each quantized module and its bits."""
    root = Empty()
    for module in modules(JsonObject("config.json", config)):
        made = torch.nn.Linear(64, 64, device="meta") if module.kind == "Linear" else torch.nn.Embedding(64, 64)
        put(root, module.name, made)
    read = QuantizationConfig.model_validate(quantization)
    apply_quantization_config(root, read, show_progress=False)
    found = {name: getattr(module, "quantization_scheme", None) for name, module in root.named_modules()}
    return {name: scheme.weights.num_bits for name, scheme in found.items() if scheme is not None}


def resolved(config: dict[str, Any], quantization: dict[str, Any]) -> dict[str, int]:
    recipe = Recipe(JsonObject("config.json", quantization))
    found = {module.name: recipe.group_of(module) for module in modules(JsonObject("config.json", config))}
    groups = quantization["config_groups"]
    return {name: groups[group]["weights"]["num_bits"] for name, group in found.items() if group is not None}


@pytest.mark.parametrize(
    ("groups", "ignore"),
    [
        ([group("Linear")], K2_IGNORES),
        ([group(EXPERTS)], []),
        ([group(*EXPERT_NAMES)], None),
        ([group("Linear")], []),
        ([group("Linear", "Embedding")], ["lm_head"]),
        ([group("Module")], ["re:.*self_attn"]),
        ([group("linear", "up_proj", "experts.3.up_proj", "Lin")], []),  # neither parts of names nor of classes
        ([group("re:experts")], []),  # an expression must match from the beginning …
        ([group("re:model.layers.1")], []),  # … and need not match to the end
        ([group("Linear")], ["Linear"]),
        ([group("Linear"), group(ONE, weights=INT8)], K2_IGNORES),
        ([group(ONE, weights=INT8), group("Linear")], K2_IGNORES),
        ([group(EXPERTS), group("re:.*up_proj", weights=INT8)], K2_IGNORES),
        ([group("re:.*up_proj", weights=INT8), group(EXPERTS)], K2_IGNORES),
        ([group("Linear"), group("Linear", weights=INT8)], K2_IGNORES),
        ([group("Module"), group("Linear", weights=INT8)], K2_IGNORES),
        ([group(EXPERTS), group("re:.*self_attn.*", weights=INT8)], ["re:.*self_attn.*"]),
    ],
)
def test_targets_and_ignores_mean_what_the_library_makes_of_them(
    config_data: Any, groups: list[dict[str, Any]], ignore: list[str] | None
) -> None:
    quantization = {"config_groups": {f"group_{i}": one for i, one in enumerate(groups)}, "ignore": ignore}
    assert resolved(config_data(), quantization) == resolved_by_the_library(config_data(), quantization)


def tree(tiny: Path) -> Iterator[tuple[str, torch.nn.Module, torch.Tensor | None]]:
    """Every weight as a module with its true values, and the scales of those that are to be quantized."""
    with Checkpoint.open(tiny) as checkpoint:
        for name, info in checkpoint.tensors.items():
            module, _, part = name.rpartition(".")
            scale = None
            if part == "weight_packed":
                shape = torch.Size(checkpoint.read(f"{module}.weight_shape").tolist())
                scale = checkpoint.read(f"{module}.weight_scale")
                codes = unpack_from_int32(checkpoint.read(name), 4, shape)
                weight = codes.bfloat16() * scale.repeat_interleave(32, 1)
            elif part == "weight" and len(info.shape) == 2 and not module.endswith((".gate", ".embed_tokens")):
                weight = checkpoint.read(name)
            else:
                continue
            made = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=torch.bfloat16)
            made.weight.data = weight
            yield module, made, scale


def pack_by_the_library(tiny: Path, out: Path, quantization: dict[str, Any]) -> Path:
    """The same weights in one file, quantized by ``quantization``, with the recipe that the library writes."""
    shutil.copytree(tiny, out, ignore=shutil.ignore_patterns("*.safetensors*"))
    root = Empty()
    scales = {}
    for name, module, scale in tree(tiny):
        put(root, name, module)
        scales[name] = scale
    read = QuantizationConfig.model_validate({**quantization, "quantization_status": "initialized"})
    apply_quantization_config(root, read, show_progress=False)
    for name, module in root.named_modules():
        if hasattr(module, "weight_scale"):
            module.weight_scale.data = scales[name]
    compressor = ModelCompressor.from_pretrained_model(root)
    compressor.compress_model(root)
    state = {name: tensor for path in sorted(tiny.glob("*.safetensors")) for name, tensor in load_file(path).items()}
    kept = {name: tensor for name, tensor in state.items() if ".experts." not in name}
    save_file({**kept, **root.state_dict()}, out / SINGLE_FILE)
    compressor.update_config(str(out))
    return out


@pytest.mark.parametrize(
    ("groups", "ignore"),
    [
        ({"group_0": group("Linear")}, K2_IGNORES),
        ({"group_0": group("Linear", weights={**INT4, "actorder": "static"})}, K2_IGNORES),
        ({"experts": group(EXPERTS, weights={**INT4, "actorder": "weight", "observer": "mse"})}, []),
        ({"group_0": group(*EXPERT_NAMES[:24]), "group_1": group(*EXPERT_NAMES[24:])}, []),
        ({"group_0": group(EXPERTS), "group_1": group("re:.*self_attn.*", weights=INT8)}, ["re:.*self_attn.*"]),
        ({"group_0": group(EXPERTS, weights={"num_bits": 4, "group_size": 32})}, ["lm_head"]),
    ],
)
def test_what_the_library_packs_by_a_recipe_passes_and_holds_the_same_codes(
    tiny: Path, tmp_path: Path, groups: dict[str, Any], ignore: list[str]
) -> None:
    out = pack_by_the_library(tiny, tmp_path / "packed", {"config_groups": groups, "ignore": ignore})
    with Checkpoint.open(tiny) as expected, Checkpoint.open(out) as actual:
        assert check(actual).unused == ()
        for layer, expert in ((1, 0), (1, 7), (2, 5)):
            for names in actual.expert_names(layer, expert):
                for name in names:
                    assert torch.equal(actual.read(name), expected.read(name))
