from collections.abc import Callable
from typing import Any

import pytest

from expertfleet.checkpoint.errors import CheckpointError
from expertfleet.checkpoint.model_config import ModelConfig, YarnConfig

ConfigData = Callable[[], dict[str, Any]]


def test_both_spellings_read_the_same(config_data: ConfigData) -> None:
    old = config_data()
    new = config_data()
    block = new.pop("rope_scaling")
    block["rope_type"] = block.pop("type")
    new["rope_parameters"] = {**block, "rope_theta": new.pop("rope_theta")}
    assert ModelConfig.from_dict(new) == ModelConfig.from_dict(old)
    both = {**new, "rope_scaling": old["rope_scaling"], "rope_theta": old["rope_theta"]}
    assert ModelConfig.from_dict(both) == ModelConfig.from_dict(old)
    both["rope_scaling"] = {**old["rope_scaling"], "factor": 32.0}
    with pytest.raises(CheckpointError, match="rope_scaling: contradicts rope_parameters"):
        ModelConfig.from_dict(both)


def test_without_scaling_there_is_no_yarn(config_data: ConfigData) -> None:
    data = {**config_data(), "rope_scaling": None}
    config = ModelConfig.from_dict(data)
    assert (config.rope_theta, config.yarn) == (50000.0, None)
    data["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000}
    assert ModelConfig.from_dict(data).rope_theta == 10000.0


def test_absent_yarn_parameters_have_their_usual_values(config_data: ConfigData) -> None:
    block = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}
    config = ModelConfig.from_dict({**config_data(), "rope_scaling": block})
    assert config.yarn == YarnConfig(40.0, 4096, 32.0, 1.0, 1.0, 0.0)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"type": "linear"}, "rope_scaling.type: 'linear' is not supported"),
        ({"attention_factor": 1.0}, "rope_scaling.attention_factor: 1.0 is not supported"),
        ({"truncate": False}, "rope_scaling.truncate: false is not supported"),
        ({"long_factor": [1]}, "rope_scaling.long_factor: is not supported"),
        ({"factor": 0.5}, "rope_scaling.factor: 0.5 is out of range"),
        ({"factor": None}, "rope_scaling.factor: missing"),
        ({"beta_fast": "1"}, "rope_scaling.beta_fast: must be a finite number"),
        ({"mscale": 0.7, "mscale_all_dim": 0.0}, "rope_scaling.mscale: 0.7 without mscale_all_dim"),
    ],
)
def test_what_is_not_understood_is_refused(config_data: ConfigData, change: dict[str, Any], problem: str) -> None:
    data = config_data()
    data["rope_scaling"].update(change)
    with pytest.raises(CheckpointError) as caught:
        ModelConfig.from_dict(data)
    assert problem in str(caught.value)


def test_theta_must_turn_pairs_at_different_speeds(config_data: ConfigData) -> None:
    data = {**config_data(), "rope_theta": 1.0}
    with pytest.raises(CheckpointError, match=r"config\.json: rope_theta: 1\.0 must be above 1 with YaRN"):
        ModelConfig.from_dict(data)
    assert ModelConfig.from_dict({**data, "rope_scaling": None}).rope_theta == 1.0


def test_theta_is_needed(config_data: ConfigData) -> None:
    data = config_data()
    del data["rope_theta"]
    with pytest.raises(CheckpointError, match=r"config\.json: rope_theta: missing"):
        ModelConfig.from_dict(data)
