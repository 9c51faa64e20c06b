"""The bundled model: transformers on its dequantised weights chooses the same tokens, and its experts are all in use."""

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import pytest
import torch

from expertfleet.checkpoint.chat_template import ChatTemplate
from expertfleet.checkpoint.check import check
from expertfleet.checkpoint.files import CheckpointFiles
from expertfleet.checkpoint.tokenizer import Tokenizer
from expertfleet.demo.bundled import NANO_K2
from expertfleet.demo.dialogues.mixture import make_dialogue
from expertfleet.proto.generated import generate_pb2, generate_pb2_grpc

MAX_TOKENS = 120
MAX_BYTES = 25_000_000
MAX_LOAD = 1.5


def test_the_checkpoint_is_whole_and_small() -> None:
    with CheckpointFiles.open(NANO_K2) as checkpoint:
        assert not check(checkpoint, None, 2).unused
    assert sum(path.stat().st_size for path in NANO_K2.iterdir()) < MAX_BYTES


@pytest.fixture(scope="module")
def oracle_model(oracle: ModuleType) -> Any:
    return oracle.load_oracle(NANO_K2)


@pytest.fixture
def prompts() -> list[list[int]]:
    tokenizer = Tokenizer.from_dir(NANO_K2)
    template = ChatTemplate.from_dir(NANO_K2, tokenizer)
    dialogues = (make_dialogue(random.getrandbits(50), held_out=True) for _ in range(100))
    return [template.render_ids(dialogue.question(), list(dialogue.tools)) for dialogue in dialogues]


@pytest.mark.slow
def test_transformers_chooses_the_same_tokens(
    start: Callable[..., Any], oracle_model: Any, prompts: list[list[int]]
) -> None:
    """Greedy in float32; each of our tokens must be the one that the oracle finds likeliest after those before it."""
    shards = [
        start("expert_workers", "--model", NANO_K2, "--dtype", "float32", "--seat", seat, "--experts", held)
        for seat, held in (("expert-0", "0-15"), ("expert-1", "16-31"))
    ]
    addresses = [shard.address() for shard in shards]
    attention = start("attention_workers", "--model", NANO_K2, "--dtype", "float32", "--shards", *addresses)
    answers = asyncio.run(answer(str(attention.ready_address()), prompts))
    for prompt, tokens in zip(prompts, answers, strict=True):
        assert tokens
        with torch.inference_mode():
            logits = oracle_model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        assert logits.argmax(-1).tolist() == tokens


async def answer(address: str, prompts: list[list[int]]) -> list[list[int]]:
    stop_ids = Tokenizer.from_dir(NANO_K2).stop_ids
    async with grpc.aio.insecure_channel(address) as channel:
        stub = generate_pb2_grpc.AttentionWorkerStub(channel)
        return list(await asyncio.gather(*(one(stub, index, ids, stop_ids) for index, ids in enumerate(prompts))))


async def one(stub: Any, index: int, ids: list[int], stop_ids: tuple[int, ...]) -> list[int]:
    request = generate_pb2.GenerateRequest(
        request_id=f"r{index}",
        prompt_ids=ids,
        sampling=generate_pb2.Sampling(temperature=0, top_p=1),
        max_tokens=MAX_TOKENS,
        stop_token_ids=stop_ids,
    )
    return [token async for reply in stub.Generate(request, wait_for_ready=True) for token in reply.token_ids]


def test_every_expert_carries_its_share(oracle_model: Any, tmp_path: Path) -> None:
    """On held-out dialogues, the busiest expert of each layer against the mean."""
    tokenizer = Tokenizer.from_dir(NANO_K2)
    template = ChatTemplate.from_dir(NANO_K2, tokenizer)
    loads = [torch.zeros(len(layer.mlp.gate.weight)) for layer in oracle_model.model.layers[1:]]

    def count(load: torch.Tensor) -> Callable[..., None]:
        def hook(gate: Any, inputs: Any, outputs: tuple[torch.Tensor, ...]) -> None:
            load.add_(torch.bincount(outputs[2].flatten(), minlength=len(load)))  # logits, weights, ids

        return hook

    hooks = [
        layer.mlp.gate.register_forward_hook(count(load))
        for layer, load in zip(oracle_model.model.layers[1:], loads, strict=True)
    ]
    for _ in range(300):
        dialogue = make_dialogue(random.getrandbits(50), held_out=True)
        ids = template.render_ids(dialogue.messages(), list(dialogue.tools), add_generation_prompt=False)
        with torch.inference_mode():
            oracle_model(torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    for load in loads:
        assert float(load.max() / load.mean()) <= MAX_LOAD, load
