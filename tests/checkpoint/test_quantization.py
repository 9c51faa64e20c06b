import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from expertfleet.checkpoint.errors import CheckpointError
from expertfleet.checkpoint.model_config import ModelConfig

ConfigData = Callable[[], dict[str, Any]]
NAMES = ("gate", "up", "down")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("quant_method",), "gptq"),
        (("format",), "float-quantized"),
        (("kv_cache_scheme",), {"num_bits": 8}),
        (("sparsity_config",), {"format": "sparse-24"}),
        (("sparsity_config",), {"format": "sparse-24-bitmask", "sparsity_structure": "2:4"}),
        (("moe_sparsity_config",), {"method": "prune"}),
        (("transform_config",), {"config_groups": {"R1": {"type": "hadamard"}}}),
        (("quantization_status",), "initialized"),
        (("config_groups", "group_0", "format"), "nvfp4-pack-quantized"),
        (("config_groups", "group_0", "input_activations"), {"num_bits": 8}),
        (("config_groups", "group_0", "output_activations"), {"num_bits": 8}),
        (("config_groups", "group_0", "a_new_key"), 1),
        (("config_groups", "group_0", "weights", "num_bits"), 8),
        (("config_groups", "group_0", "weights", "num_bits"), "8"),
        (("config_groups", "group_0", "weights", "num_bits"), True),
        (("config_groups", "group_0", "weights", "num_bits"), [4]),
        (("config_groups", "group_0", "weights", "num_bits"), 4.5),
        (("config_groups", "group_0", "weights", "symmetric"), 0),
        (("config_groups", "group_0", "weights", "symmetric"), [True]),
        (("config_groups", "group_0", "weights", "symmetric"), "no"),
        (("config_groups", "group_0", "weights", "dynamic"), "true"),
        (("config_groups", "group_0", "weights", "dynamic"), {"a": 1}),
        (("config_groups", "group_0", "weights", "num_bits"), None),  # the library's default is 8
        (("config_groups", "group_0", "weights", "type"), "float"),
        (("config_groups", "group_0", "weights", "symmetric"), False),
        (("config_groups", "group_0", "weights", "strategy"), "channel"),
        (("config_groups", "group_0", "weights", "strategy"), "tensor_group"),
        (("config_groups", "group_0", "weights", "actorder"), "group"),
        (("config_groups", "group_0", "weights", "actorder"), "dynamic"),
        (("config_groups", "group_0", "weights", "actorder"), True),
        (("config_groups", "group_0", "weights", "dynamic"), True),
        (("config_groups", "group_0", "weights", "dynamic"), "local"),
        (("config_groups", "group_0", "weights", "block_structure"), [128, 128]),
        (("config_groups", "group_0", "weights", "scale_dtype"), "torch.float8_e4m3fn"),
        (("config_groups", "group_0", "weights", "group_size"), -1),
        (("config_groups", "group_0", "weights", "group_size"), 16),
        (("config_groups", "group_0", "weights", "group_size"), 48),
        (("config_groups", "group_0", "weights", "a_new_key"), {"x": 1}),
    ],
)
def test_another_quantization_is_refused_by_key(config_data: ConfigData, path: tuple[str, ...], value: Any) -> None:
    data = config_data()
    change(data, ".".join(path), value)
    with pytest.raises(CheckpointError) as caught:
        ModelConfig.from_dict(data)
    assert f"config.json: quantization_config.{'.'.join(path)}: " in str(caught.value)
    assert f"{json.dumps(value)} is not supported (" in str(caught.value)


def test_an_unquantized_model_is_refused(config_data: ConfigData) -> None:
    data = config_data()
    del data["quantization_config"]
    with pytest.raises(CheckpointError, match="quantization_config: missing: only INT4"):
        ModelConfig.from_dict(data)


def change(data: dict[str, Any], path: str, value: Any) -> None:
    """Of the quantization; a path from ``weights`` or ``group`` on is its one group's."""
    place = data["quantization_config"]
    path = re.sub("^weights", "group.weights", path)
    *keys, last = re.sub("^group[.]", "config_groups.group_0.", path).split(".")
    for key in keys:
        place = place[key]
    place[last] = value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("weights.num_bits", 4.0),
        ("weights.num_bits", "4"),
        ("weights.group_size", 32.0),
        ("weights.group_size", "32"),
        ("weights.symmetric", 1),
        ("weights.symmetric", "True"),
        ("weights.dynamic", 0),
        ("weights.dynamic", "false"),
        ("format", "pack_quantized"),
        ("group.format", "PACK-QUANTIZED"),
        ("quant_method", "Compressed-Tensors"),
        ("weights.actorder", "static"),
        ("weights.actorder", "weight"),
        ("weights.actorder", False),
        ("weights.type", "INT"),
        ("weights.type", None),
        ("weights.symmetric", None),
        ("weights.strategy", "Group"),
        ("weights.strategy", None),
        ("weights.dynamic", None),
        ("weights.observer", "mse"),
        ("weights.observer", None),
        ("weights.observer_kwargs", {"averaging_constant": 0.01}),
        ("weights.zp_dtype", "torch.int8"),
        ("weights.scale_dtype", "torch.bfloat16"),
        ("group.format", "pack-quantized"),
        ("group.targets", ["re:.*mlp\\.experts\\..*"]),
        ("group.targets", [f"model.layers.{i // 8}.mlp.experts.{i % 8}.{p}_proj" for i in range(8, 24) for p in NAMES]),
        ("ignore", ["re:^lm_head$", "re:model\\.layers\\.\\d+\\.(self_attn|mlp\\.(shared_experts|[gud])).*"]),
        ("quant_method", "compressed_tensors"),
        ("quant_method", None),
        ("quantization_status", "frozen"),
        ("quantization_status", None),
        ("global_compression_ratio", 1.89),
        ("version", "0.12.3.a20251114"),
        ("sparsity_config", {}),
        ("sparsity_config", {"format": "dense", "global_sparsity": 0.12, "sparsity_structure": "unstructured"}),
        ("transform_config", {}),
        ("transform_config", {"config_groups": {}}),
        ("moe_sparsity_config", None),
    ],
)
def test_another_spelling_of_the_same_recipe_is_accepted(config_data: ConfigData, path: str, value: Any) -> None:
    data = config_data()
    expected = ModelConfig.from_dict(data)
    change(data, path, value)
    assert ModelConfig.from_dict(data) == expected


def test_an_ignore_list_may_be_absent_where_only_experts_are_targeted(config_data: ConfigData) -> None:
    for ignore in ([], None):
        data = config_data()
        change(data, "group.targets", ["re:.*experts\\.\\d+\\..*"])
        change(data, "ignore", ignore)
        assert ModelConfig.from_dict(data).group_size == 32
    del data["quantization_config"]["ignore"]
    assert ModelConfig.from_dict(data).group_size == 32


def test_the_recipe_may_have_its_older_key_and_lie_a_level_deeper(config_data: ConfigData) -> None:
    data = config_data()
    expected = ModelConfig.from_dict(data)
    quantization = data.pop("quantization_config")
    for spelled in (
        {"compression_config": quantization},
        {"compression_config": {"quantization_config": quantization}},
        {"quantization_config": quantization, "compression_config": dict(quantization)},
    ):
        assert ModelConfig.from_dict({**data, **spelled}) == expected
    contradicting = {"quantization_config": quantization, "compression_config": {**quantization, "ignore": []}}
    with pytest.raises(CheckpointError, match="compression_config: contradicts quantization_config"):
        ModelConfig.from_dict({**data, **contradicting})


def test_the_format_may_stand_in_the_group_alone(config_data: ConfigData) -> None:
    for whole in ("mixed-precision", None):
        data = config_data()
        change(data, "format", whole)
        with pytest.raises(CheckpointError, match=r"quantization_config\.format: .* is not supported"):
            ModelConfig.from_dict(data)
        change(data, "group.format", "pack-quantized")
        assert ModelConfig.from_dict(data).group_size == 32


def test_a_named_scheme_is_what_it_stands_for(config_data: ConfigData) -> None:
    data = {**config_data(), "hidden_size": 128, "moe_intermediate_size": 256}
    data["quantization_config"]["config_groups"] = {"W4A16": ["Linear"]}
    assert ModelConfig.from_dict(data).group_size == 128
    data["quantization_config"]["config_groups"] = {"W8A16": ["Linear"]}
    with pytest.raises(CheckpointError, match=r"config_groups\.W8A16: this scheme's name is not supported"):
        ModelConfig.from_dict(data)


def test_groups_that_no_module_belongs_to_do_not_matter(config_data: ConfigData) -> None:
    data = config_data()
    data["quantization_config"]["config_groups"] |= {
        "attention": {"targets": ["re:.*self_attn.*"], "weights": {"num_bits": 8, "strategy": "channel"}},
        "vision": {"targets": ["re:vision_tower.*"], "weights": None, "input_activations": {"num_bits": 8}},
        "nothing": {"targets": ["lm_head"], "weights": None},
    }
    assert ModelConfig.from_dict(data).group_size == 32


def test_experts_of_two_groups_must_agree(config_data: ConfigData) -> None:
    data = {**config_data(), "hidden_size": 128, "moe_intermediate_size": 128}
    groups = data["quantization_config"]["config_groups"]
    groups["down"] = json.loads(json.dumps(groups["group_0"])) | {"targets": ["re:.*experts.*down_proj"]}
    assert ModelConfig.from_dict(data).group_size == 32
    groups["down"]["weights"]["group_size"] = 64
    with pytest.raises(
        CheckpointError, match=r"config_groups: experts have the group sizes .*'down': 64.*must have one"
    ):
        ModelConfig.from_dict(data)
    groups["down"]["weights"] |= {"group_size": 32, "num_bits": 8}
    with pytest.raises(
        CheckpointError, match=r"config_groups\.down\.weights\.num_bits: 8 is not supported \(must be 4\)"
    ):
        ModelConfig.from_dict(data)


def test_an_expert_that_no_target_means_is_named(config_data: ConfigData) -> None:
    data = config_data()
    change(data, "group.targets", ["re:.*experts.*(gate|up)_proj", "down_proj"])
    with pytest.raises(CheckpointError) as caught:
        ModelConfig.from_dict(data)
    assert "quantization_config.config_groups: no target matches model.layers.1.mlp.experts.0.down_proj" in str(
        caught.value
    )


def test_an_embedding_cannot_be_quantized(config_data: ConfigData) -> None:
    data = config_data()
    change(data, "group.targets", ["Linear", "Embedding"])
    with pytest.raises(CheckpointError, match=r"ignore: does not list model\.embed_tokens"):
        ModelConfig.from_dict(data)


@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_the_group_size_is_free(config_data: ConfigData, group_size: int) -> None:
    data = {**config_data(), "hidden_size": 128, "moe_intermediate_size": 256}
    change(data, "weights.group_size", group_size)
    config = ModelConfig.from_dict(data)
    assert config.group_size == group_size
    assert config.expert_bytes == 3 * 128 * 256 * (0.5 + 2 / group_size)


@pytest.mark.parametrize(
    ("ignore", "problem"),
    [
        ([], "does not list lm_head"),
        (["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*"], "does not list model.layers.0.mlp.gate_proj"),
        (["lm_head", "re:.*self_attn.*", "re:.*mlp\\..*"], "leaves model.layers.1.mlp.experts."),
        (["re:.*"], "leaves model.layers.1.mlp.experts."),
        (
            ["lm_head", "re:.*self_attn", "re:.*mlp\\.[gud]", "re:.*shared", "Linear"],
            "leaves model.layers.1.mlp.experts.",
        ),
        (["lm_head", "self_attn", "shared_experts"], "does not list model.layers.0.self_attn"),  # parts of names
        (["re:(", "lm_head"], "is not a regular expression"),
        ([7], "must hold module names or patterns, holds 7"),
    ],
)
def test_exactly_the_routed_experts_must_be_quantized(config_data: ConfigData, ignore: list[Any], problem: str) -> None:
    data = config_data()
    data["quantization_config"]["ignore"] = ignore
    with pytest.raises(CheckpointError) as caught:
        ModelConfig.from_dict(data)
    assert "quantization_config.ignore: " in str(caught.value)
    assert problem in str(caught.value)


def test_module_names_without_patterns_do_as_well(config_data: ConfigData) -> None:
    data = config_data()
    names = ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*"]
    names += [f"model.layers.0.mlp.{projection}_proj" for projection in ("gate", "up", "down")]
    data["quantization_config"]["ignore"] = names
    assert ModelConfig.from_dict(data).group_size == 32
