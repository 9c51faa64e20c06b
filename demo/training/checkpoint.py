"""nano-k2's files: configuration, vocabulary and template before training, weights after it, and weights to go on from.

Knows nothing of training. The experts' codes are packed by compressed-tensors' own packer. The exported logits are
``SHARPNESS`` times the trained ones: clients sample at temperature 1.0, for which a small model's spread is too wide.
"""

import base64
import json
import shutil
from pathlib import Path

import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from safetensors.torch import save_file

from ...checkpoint import tiny_vocabulary
from ...checkpoint.chat_template import ChatTemplate
from ...checkpoint.model_config import ModelConfig
from ...checkpoint.tensor_names import all_tensors, expert_projections
from ...checkpoint.tensors import Checkpoint
from ...checkpoint.tiny_config import TinyShape, config_document
from ...checkpoint.tokenizer import Tokenizer
from ...kernels import int4
from ..dialogues.mixture import make_dialogue
from .model import NanoK2, quantize
from .samples import Renderer
from .vocabulary import train_ranks

FOLDER = "nano-k2"
SHARPNESS = 4.0
SHAPE = TinyShape(
    hidden=256, layers=4, experts=32, expert_width=64, dense_width=768, heads=4, vocab=4352,
    context=32_768,
)  # fmt: skip
_TEMPLATE = Path(__file__).parents[2] / "checkpoint" / "kimi_k2_thinking.jinja"
_WEIGHTS = "model.safetensors"
_VOCABULARY = "tiktoken.model"


def prepare(out: Path, vocabulary_dialogues: int) -> ModelConfig:
    """Everything of the checkpoint but its weights; a vocabulary that is already there is kept."""
    folder = out / FOLDER
    folder.mkdir(exist_ok=True)
    document = config_document(SHAPE)
    documents = {
        "config.json": document,
        "generation_config.json": {
            "eos_token_id": document["eos_token_id"], "max_length": SHAPE.context, "temperature": 1.0,
        },
        "tokenizer_config.json": tiny_vocabulary.tokenizer_config(SHAPE.vocab),
    }  # fmt: skip
    for name, content in documents.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(_TEMPLATE, folder / "chat_template.jinja")
    ranks = folder / _VOCABULARY
    if not ranks.exists():
        texts = (_text(seed) for seed in range(vocabulary_dialogues))
        trained = train_ranks(texts, tiny_vocabulary.num_ranks(SHAPE.vocab))
        lines = (base64.b64encode(token) + b" %d\n" % rank for token, rank in trained.items())
        ranks.write_bytes(b"".join(lines))
    return ModelConfig.from_dir(folder)


def renderer(out: Path) -> Renderer:
    tokenizer = Tokenizer.from_dir(out / FOLDER)
    return Renderer(tokenizer, ChatTemplate.from_dir(out / FOLDER, tokenizer))


def export(out: Path, model: NanoK2) -> None:
    """One file of weights with the published names, shapes and dtypes."""
    config = ModelConfig.from_dir(out / FOLDER)
    tensors = _tensors(model, config)
    wanted = {spec.name: spec for spec in all_tensors(config)}
    assert tensors.keys() == wanted.keys(), tensors.keys() ^ wanted.keys()
    assert all(tuple(tensors[name].shape) == spec.shape for name, spec in wanted.items())
    save_file(tensors, out / FOLDER / _WEIGHTS, {"format": "pt"})
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())},
        "weight_map": dict.fromkeys(sorted(tensors), _WEIGHTS),
    }
    (out / FOLDER / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def take_vocabulary(source: Path, out: Path) -> None:
    """Of another nano-k2, before ``prepare``."""
    (out / FOLDER).mkdir(exist_ok=True)
    shutil.copyfile(source / _VOCABULARY, out / FOLDER / _VOCABULARY)


@torch.no_grad()
def take_weights(source: Path, model: NanoK2) -> None:
    """Those that ``export`` wrote, as they are served: experts dequantised, all else as bfloat16 holds it."""
    with Checkpoint.open(source) as checkpoint:
        config = checkpoint.config
        for name, tensor in model.state_dict().items():
            if ".experts." not in name and name != "output_map.weight":
                tensor.copy_(checkpoint.read(name))
        embedding = model.model.embed_tokens.weight
        embedding /= config.hidden_size**0.5
        head = checkpoint.read("lm_head.weight").double() / SHARPNESS
        model.output_map.weight.copy_(torch.linalg.lstsq(embedding.double().cpu(), head).solution)
        for layer, mixture in zip(config.moe_layers, model.mixtures(), strict=True):
            experts = mixture.experts
            for expert in range(config.num_experts):
                gate, up, down = (
                    int4.dequantize(checkpoint.read(one.packed), checkpoint.read(one.scale)).mT
                    for one in expert_projections(config, layer, expert)
                )
                experts.gate_up[expert] = torch.cat((gate, up), dim=-1)
                experts.down[expert] = down


def _tensors(model: NanoK2, config: ModelConfig) -> dict[str, torch.Tensor]:
    state = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    tensors = {}
    for name, tensor in state.items():
        if ".experts." not in name and name != "output_map.weight":
            tensors[name] = tensor if name.endswith("_bias") else tensor.bfloat16()
    embed, head = (tensor.cpu() for tensor in model.embed_and_head())
    tensors["model.embed_tokens.weight"], tensors["lm_head.weight"] = embed.bfloat16(), SHARPNESS * head.bfloat16()
    for layer in config.moe_layers:
        prefix = f"model.layers.{layer}.mlp.experts"
        gate_up, down = state[f"{prefix}.gate_up"], state[f"{prefix}.down"]
        for expert in range(config.num_experts):
            gate, up = gate_up[expert].chunk(2, dim=-1)
            projections = expert_projections(config, layer, expert)
            for projection, weight in zip(projections, (gate, up, down[expert]), strict=True):
                codes, scale = quantize(weight, config.group_size)
                tensors[projection.packed] = pack_to_int32(codes.mT.contiguous(), 4)
                tensors[projection.scale] = scale.mT.contiguous()
                tensors[projection.shape] = torch.tensor([projection.rows, projection.columns], dtype=torch.int32)
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _text(seed: int) -> str:
    dialogue = make_dialogue(seed)
    said = [*(json.dumps(one, ensure_ascii=False, separators=(",", ":"), sort_keys=True) for one in dialogue.tools)]
    for message in dialogue.messages():
        said += [message.get("reasoning_content", ""), message["content"]]
        said += [f"{call['id']}\n{call['function']['arguments']}" for call in message.get("tool_calls", ())]
        said += [f"## Return of {message['tool_call_id']}"] if "tool_call_id" in message else []
    return "\n".join(said)
