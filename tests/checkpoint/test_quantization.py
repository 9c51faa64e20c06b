from collections.abc import Callable
from typing import Any

import pytest

from expertfleet.checkpoint.errors import CheckpointError
from expertfleet.checkpoint.model_config import ModelConfig

ConfigData = Callable[[], dict[str, Any]]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("quant_method",), "gptq"),
        (("format",), "float-quantized"),
        (("kv_cache_scheme",), {"num_bits": 8}),
        (("sparsity_config",), {"format": "sparse-24"}),
        (("config_groups", "group_0", "targets"), ["Linear", "Embedding"]),
        (("config_groups", "group_0", "input_activations"), {"num_bits": 8}),
        (("config_groups", "group_0", "weights", "num_bits"), 8),
        (("config_groups", "group_0", "weights", "type"), "float"),
        (("config_groups", "group_0", "weights", "symmetric"), False),
        (("config_groups", "group_0", "weights", "strategy"), "channel"),
        (("config_groups", "group_0", "weights", "actorder"), "weight"),
        (("config_groups", "group_0", "weights", "dynamic"), True),
    ],
)
def test_another_quantization_is_refused_by_key(config_data: ConfigData, path: tuple[str, ...], value: Any) -> None:
    data = config_data()
    place = data["quantization_config"]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(CheckpointError) as caught:
        ModelConfig.from_dict(data)
    assert f"config.json: quantization_config.{'.'.join(path)}: " in str(caught.value)
    assert "is not supported (must be " in str(caught.value)


def test_an_unquantized_model_is_refused(config_data: ConfigData) -> None:
    data = config_data()
    del data["quantization_config"]
    with pytest.raises(CheckpointError, match="quantization_config: missing: only INT4"):
        ModelConfig.from_dict(data)


def test_two_groups_are_refused(config_data: ConfigData) -> None:
    data = config_data()
    groups = data["quantization_config"]["config_groups"]
    groups["group_1"] = groups["group_0"]
    with pytest.raises(CheckpointError, match="config_groups: holds 2 groups, must hold 1"):
        ModelConfig.from_dict(data)


def test_the_group_size_is_free(config_data: ConfigData) -> None:
    data = config_data()
    data["quantization_config"]["config_groups"]["group_0"]["weights"]["group_size"] = 16
    config = ModelConfig.from_dict(data)
    assert config.group_size == 16
    assert config.expert_bytes == 3 * 64 * 32 * (0.5 + 2 / 16)


@pytest.mark.parametrize(
    ("ignore", "problem"),
    [
        ([], "does not list lm_head"),
        (["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*"], "does not list model.layers.0.mlp.gate_proj"),
        (["lm_head", "re:.*self_attn.*", "re:.*mlp\\..*"], "leaves model.layers.1.mlp.experts."),
        (["re:.*"], "leaves model.layers.1.mlp.experts."),
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
