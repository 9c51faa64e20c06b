import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from expertfleet.checkpoint.errors import CheckpointError
from expertfleet.checkpoint.model_config import ModelConfig, YarnConfig
from expertfleet.checkpoint.tensor_names import all_tensors
from expertfleet.checkpoint.tiny_config import KIMI_K2_THINKING, config_document

ConfigData = Callable[[], dict[str, Any]]


def test_k2_thinking_has_its_published_dimensions() -> None:
    config = ModelConfig.from_dict(config_document(KIMI_K2_THINKING))
    assert (config.hidden_size, config.num_layers, config.num_dense_layers) == (7168, 61, 1)
    assert (config.num_experts, config.top_k, config.num_shared_experts) == (384, 8, 1)
    assert (config.num_heads, config.q_lora_rank, config.latent_width, config.qk_head_dim) == (64, 1536, 576, 192)
    assert config.moe_layers == range(1, 61)
    assert config.expert_bytes == 24_772_608
    assert config.yarn == YarnConfig(64.0, 4096, 1.0, 1.0, 1.0, 1.0)
    assert (config.rms_norm_eps, config.latent_norm_eps) == (1e-5, 1e-6)
    assert (config.bos_token_id, config.eos_token_ids, config.pad_token_id) == (163_584, (163_586,), 163_839)


def test_k2_thinking_has_its_published_tensors() -> None:
    specs = list(all_tensors(ModelConfig.from_dict(config_document(KIMI_K2_THINKING))))
    assert len(specs) == 208_215
    assert len({spec.name for spec in specs}) == len(specs)
    assert sum(spec.kind == "packed" for spec in specs) == 69_120
    sizes = {"packed": 4, "scale": 2, "weight": 2, "norm": 2, "gate": 2, "gate_bias": 4, "shape": 4}
    total = 0
    for spec in specs:
        num_items = 1
        for size in spec.shape:
            num_items *= size
        total += num_items * sizes[spec.kind]
    assert round(total / 1e9, 1) == 594.2


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("architectures", ["LlamaForCausalLM"], "must be"),
        ("architectures", None, "must be"),
        ("model_type", "deepseek_v2", "deepseek_v3"),
        ("hidden_act", "gelu", "silu"),
        ("attention_bias", True, "false"),
        ("scoring_func", "softmax", "sigmoid"),
        ("topk_method", "greedy", "noaux_tc"),
        ("moe_layer_freq", 2, "1"),
        ("rope_interleave", False, "true"),
        ("hidden_size", None, "missing"),
        ("hidden_size", -64, "-64 is out of range"),
        ("hidden_size", "64", "whole number"),
        ("hidden_size", 40, "multiple of 32"),
        ("moe_intermediate_size", 48, "multiple of 32"),
        ("first_k_dense_replace", 3, "below num_hidden_layers, 3"),
        ("n_group", 3, "must divide n_routed_experts, 8"),
        ("n_group", 8, "needs 2 or more"),
        ("topk_group", 2, "must not exceed n_group, 1"),
        ("num_experts_per_tok", 9, "must not exceed the experts that can be chosen, 8"),
        ("num_key_value_heads", 2, "must equal num_attention_heads, 4"),
        ("qk_rope_head_dim", 63, "even"),
        ("n_shared_experts", 0, "out of range"),
        ("norm_topk_prob", 1, "true or false"),
        ("rms_norm_eps", "1e-5", "finite number"),
        ("vocab_size", 1000, "below vocab_size, 1000"),
        ("vocab_size", 1 << 31, "2147483648 is out of range (1 to 4194304)"),
        ("eos_token_id", [5, True], "token ids"),
        ("eos_token_id", [5, 2048], "below vocab_size"),
    ],
)
def test_what_cannot_be_served_is_refused_by_key(config_data: ConfigData, key: str, value: Any, problem: str) -> None:
    data = {**config_data(), key: value}
    with pytest.raises(CheckpointError) as caught:
        ModelConfig.from_dict(data, "dir/config.json")
    assert str(caught.value).startswith("dir/config.json: ")
    assert problem in str(caught.value)
    if key not in ("vocab_size",):
        assert key in str(caught.value)


def test_variants_that_mean_the_same_are_accepted(config_data: ConfigData) -> None:
    data = config_data()
    expected = ModelConfig.from_dict(data)
    data["model_type"] = "deepseek_v3"
    data["num_nextn_predict_layers"] = 1
    for key in ("scoring_func", "topk_method", "num_key_value_heads", "hidden_act"):
        del data[key]
    assert ModelConfig.from_dict(data) == expected


def test_grouped_routing_and_several_ends_are_read(config_data: ConfigData) -> None:
    config = ModelConfig.from_dict({**config_data(), "n_group": 4, "topk_group": 2, "eos_token_id": [3, 9]})
    assert (config.n_group, config.topk_group, config.eos_token_ids) == (4, 2, (3, 9))


def test_a_query_without_rank_is_projected_directly(config_data: ConfigData) -> None:
    config = ModelConfig.from_dict({**config_data(), "q_lora_rank": None})
    names = [spec.name for spec in all_tensors(config)]
    assert "model.layers.0.self_attn.q_proj.weight" in names
    assert not [name for name in names if ".q_a_" in name]


def test_a_directory_without_a_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: No such file"):
        ModelConfig.from_dir(tmp_path)
    with pytest.raises(CheckpointError, match="absent: is not a directory"):
        ModelConfig.from_dir(tmp_path / "absent")


def test_from_dir_names_the_file_in_a_fault_of_two_keys(copy: Path) -> None:
    data = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**data, "topk_group": 5}))
    with pytest.raises(CheckpointError, match=rf"^{copy}/config\.json: topk_group: 5 must not exceed n_group, 1$"):
        ModelConfig.from_dir(copy)
