"""The oracle of all logits: transformers' DeepseekV3ForCausalLM on a checkpoint's exactly dequantised weights.

Knows nothing of this project's kernels or model; only the checkpoint reader is shared, and that has its own tests
against the safetensors and compressed-tensors libraries. In float32 an expert's weight is code times scale unrounded,
in bfloat16 it is that product rounded once.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from expertfleet.checkpoint.json_object import read_json_object
from expertfleet.checkpoint.tensors import Checkpoint

# Keys of config.json that transformers' class does not have, or that would make it look for a quantizer.
_DROPPED = ("architectures", "model_type", "quantization_config", "torch_dtype", "dtype", "scoring_func", "topk_method")


def load_oracle(directory: Path, dtype: torch.dtype = torch.float32) -> Any:
    """A DeepseekV3ForCausalLM in eval mode with eager attention and experts, weights and arithmetic in ``dtype``."""
    with Checkpoint.open(directory) as checkpoint:
        config = oracle_config(directory)
        with torch.device("meta"):
            model = DeepseekV3ForCausalLM(config)
        model.to_empty(device="cpu")
        model.to(dtype)
        model.model.rotary_emb = type(model.model.rotary_emb)(config)
        state = _state(checkpoint, dtype)
        expected = model.state_dict()
        assert set(state) == set(expected), set(state) ^ set(expected)
        for name, tensor in state.items():
            if name.endswith("e_score_correction_bias"):
                # transformers keeps it in float32 in every dtype.
                layer = model.model.layers[int(name.split(".")[2])]
                layer.mlp.gate.e_score_correction_bias = torch.nn.Buffer(tensor.float())
            else:
                expected[name].copy_(tensor)
        for layer in model.model.layers:
            for norm in (layer.self_attn.q_a_layernorm, layer.self_attn.kv_a_layernorm):
                if norm is not None:
                    norm.variance_epsilon = checkpoint.config.latent_norm_eps
    return model.eval()


@contextlib.contextmanager
def gate_gaps(model: Any) -> Iterator[list[torch.Tensor]]:
    """Collects, for every MoE layer, each row's gap [T] between the last chosen and the first rejected expert.

    Where it is below float32's resolution, which of the two is chosen is rounding's decision, not the model's.
    """
    gaps: list[torch.Tensor] = []

    def note(gate: Any, inputs: Any, outputs: tuple[torch.Tensor, ...]) -> None:
        biased = (outputs[0].sigmoid() + gate.e_score_correction_bias).topk(gate.top_k + 1, dim=-1).values
        gaps.append(biased[:, -2] - biased[:, -1])

    hooks = [layer.mlp.gate.register_forward_hook(note) for layer in model.model.layers if hasattr(layer.mlp, "gate")]
    try:
        yield gaps
    finally:
        for hook in hooks:
            hook.remove()


def oracle_config(directory: Path) -> Any:
    data = dict(read_json_object(directory / "config.json").data)
    for key in _DROPPED:
        data.pop(key, None)
    config = DeepseekV3Config(**data)
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    return config


def dequantized(checkpoint: Checkpoint, packed_name: str, scale_name: str) -> torch.Tensor:
    """[rows, columns] float32: code times scale, by the definition of the format and nothing cleverer."""
    packed, scale = checkpoint.read(packed_name), checkpoint.read(scale_name)
    codes = torch.stack([(packed >> (4 * nibble)) & 15 for nibble in range(8)], dim=-1).flatten(1) - 8
    group_size = codes.shape[1] // scale.shape[1]
    return codes.float() * scale.float().repeat_interleave(group_size, dim=1)


def _state(checkpoint: Checkpoint, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    names = [name for name in checkpoint.tensors if ".mlp.experts." not in name]
    state = {name: checkpoint.read(name) for name in names}
    state = {name: tensor if name.endswith("_bias") else tensor.to(dtype) for name, tensor in state.items()}
    config = checkpoint.config
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    for layer in config.moe_layers:
        experts = [
            [dequantized(checkpoint, *names).to(dtype) for names in checkpoint.expert_names(layer, expert)]
            for expert in range(config.num_experts)
        ]
        prefix = f"model.layers.{layer}.mlp.experts"
        state[f"{prefix}.gate_up_proj"] = torch.stack([torch.cat((gate, up)) for gate, up, _ in experts])
        state[f"{prefix}.down_proj"] = torch.stack([down for _, _, down in experts])
    return state
