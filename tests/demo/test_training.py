"""The training model against the oracle, the packer against the library, and that a few steps learn something."""

import argparse
import itertools
import random
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from expertfleet.checkpoint import tiny_vocabulary
from expertfleet.checkpoint.model_config import ModelConfig
from expertfleet.checkpoint.tensors import Checkpoint
from expertfleet.checkpoint.tokenizer import Tokenizer
from expertfleet.demo.dialogues.mixture import make_dialogue
from expertfleet.demo.training import __main__ as training
from expertfleet.demo.training.checkpoint import SHAPE, SHARPNESS, export, renderer, take_weights
from expertfleet.demo.training.model import NanoK2, dequantize, quantize
from expertfleet.demo.training.optimizer import Muon
from expertfleet.demo.training.samples import batches
from expertfleet.demo.training.vocabulary import train_ranks

OPTIONS = {
    "tokens": 200_000, "batch_tokens": 1024, "lr": 3e-3, "weight_decay": 0.05, "decay_share": 0.4,
    "quantized_share": 0.2, "exercise_tokens": 0, "vocabulary_dialogues": 30_000, "seed": 0, "check_every": 10**9, "save_every": 1e9,
    "start_from": None, "device": torch.device("cpu"),
}  # fmt: skip


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder with a vocabulary made up, as a trained one takes long to make."""
    (tmp_path / "nano-k2").mkdir()
    (tmp_path / "nano-k2" / "tiktoken.model").write_bytes(tiny_vocabulary.ranks_file(SHAPE.vocab))
    return tmp_path


def test_codes_and_scales_give_the_nearest_weights() -> None:
    weight = torch.randn(2, 64, 8)
    codes, scale = quantize(weight, 32)
    assert codes.dtype == torch.int8
    assert scale.shape == (2, 2, 8)
    error = (dequantize(codes, scale, 32) - weight).abs()
    step = scale.float().repeat_interleave(32, dim=-2)
    # Half a step, and half a step more for the value that would be 8.
    assert bool((error <= step * 1.01).all())
    assert bool((error <= step * 0.51).float().mean() > 0.95)


def test_the_model_is_the_oracles(out: Path, oracle: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, on the exported checkpoint's own dequantised weights."""
    config = _prepared(out)
    model = NanoK2(config, 512)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.06)
    for mixture in model.mixtures():
        mixture.gate.e_score_correction_bias.uniform_(-0.1, 0.1)
    export(out, model)
    take_weights(out / "nano-k2", model)
    reference = oracle.load_oracle(out / "nano-k2")
    ids = torch.randint(config.vocab_size, (1, 100))
    monkeypatch.setattr("expertfleet.demo.training.model.product_dtype", lambda device: torch.float32)
    monkeypatch.setattr("expertfleet.demo.training.model.as_stored", lambda weight: weight)
    with torch.no_grad():
        ours = model.hidden(ids, torch.ones_like(ids, dtype=torch.bool))
        theirs = reference.model(ids).last_hidden_state
    assert float((ours - theirs).abs().max()) < 1e-4 * float(theirs.abs().max())


def test_the_exported_head_is_the_trained_one(out: Path) -> None:
    config = _prepared(out)
    model = NanoK2(config, 64)
    torch.nn.init.normal_(model.output_map.weight)
    export(out, model)
    hidden = torch.randn(5, config.hidden_size)
    with Checkpoint.open(out / "nano-k2") as checkpoint, torch.no_grad():
        exported = hidden @ checkpoint.read("lm_head.weight").float().mT
        trained = torch.nn.functional.linear(hidden @ model.output_map.weight.mT, model.model.embed_tokens.weight)
        embedded = checkpoint.read("model.embed_tokens.weight").float() / config.hidden_size**0.5
        assert torch.allclose(exported, SHARPNESS * trained, atol=0.02 * SHARPNESS * float(trained.std()))
        assert torch.allclose(embedded, model.model.embed_tokens.weight, rtol=1 / 256)


def test_a_run_goes_on_from_an_exported_checkpoint(out: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    first = training.Trainer(out, argparse.Namespace(**OPTIONS))
    for parameter in first.model.parameters():
        torch.nn.init.normal_(parameter, std=0.06)
    export(out, first.model)
    second = tmp_path_factory.mktemp("second")
    options = {**OPTIONS, "start_from": out / "nano-k2", "seed": 1}
    again = training.Trainer(second, argparse.Namespace(**options))
    assert again.next_seed > 0
    assert (second / "nano-k2" / "tiktoken.model").read_bytes() == (out / "nano-k2" / "tiktoken.model").read_bytes()
    for mine, theirs in zip(again.model.embed_and_head(), first.model.embed_and_head(), strict=True):
        assert torch.allclose(mine, theirs, atol=0.02 * float(theirs.std()), rtol=2**-7)
    for mine, theirs in zip(again.model.mixtures(), first.model.mixtures(), strict=True):
        used = dequantize(*quantize(theirs.experts.down.detach(), 32), 32)
        assert torch.equal(mine.experts.down, used)
        assert torch.equal(mine.gate.weight, theirs.gate.weight.bfloat16())


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cuda:x", "cpu:1"])
def test_a_device_that_is_not_there_is_refused_by_name(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["training", "--out", str(tmp_path), "--device", device])
    with pytest.raises(SystemExit):
        training.main()
    assert device in capsys.readouterr().err


def test_learned_are_the_words_of_the_assistant_after_the_users_last(out: Path) -> None:
    _prepared(out)
    render, tokenizer = renderer(out), Tokenizer.from_dir(out / "nano-k2")
    for seed in random.sample(range(10**9), 100):
        dialogue = make_dialogue(seed)
        sample = render.render(dialogue)
        learned = [token for token, mine in zip(sample.ids, sample.learned, strict=True) if mine]
        said = tokenizer.decode_bytes(learned).decode()
        expected = "".join(
            f"<think>{step.reasoning}</think>{step.content}"
            + (_calls(dialogue, step) if step.calls else "")
            + "<|im_end|>"
            for step in dialogue.last.steps
        )
        assert said == expected


def test_batches_hold_every_sample_once(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("expertfleet.demo.training.samples._POOL_ROWS", 64)
    _prepared(out)
    render = renderer(out)
    samples = [render.render(make_dialogue(seed)) for seed in range(200)]
    made = list(batches(iter(samples), 2048, 0, lambda ready: None))
    assert sum(int(batch.present.sum()) for batch in made) == sum(len(sample.ids) for sample in samples)
    assert sum(int(batch.learned.sum()) for batch in made) == sum(sum(sample.learned) for sample in samples)
    assert sorted(kind for batch in made for kind in batch.kinds) == sorted(sample.kind for sample in samples)


def test_muon_steps_along_every_direction_alike() -> None:
    stack = torch.nn.Parameter(torch.zeros(3, 16, 48))
    stack.grad = torch.randn(3, 16, 48)
    Muon([stack], lr=1.0, weight_decay=0.0).step()
    singular = torch.linalg.svdvals(stack.detach()) / (0.2 * 48**0.5)
    assert bool(((singular > 0.5) & (singular < 1.4)).all())


def test_steps_learn_and_an_interrupted_run_continues(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_WARMUP_TOKENS", 1)
    trainer = training.Trainer(out, argparse.Namespace(**OPTIONS))
    samples = [sample for sample in itertools.islice(trainer._samples(), 60) if len(sample.ids) < 200][:4]
    (batch,) = batches(iter(samples), 1024, trainer.pad, lambda ready: None)
    losses = [trainer.step(batch) for _ in range(32)]
    assert losses[-1] < 0.8 * losses[0]
    trainer.save()
    again = training.Trainer(out, argparse.Namespace(**OPTIONS))
    assert (again.tokens, again.steps, again.next_seed) == (trainer.tokens, 32, trainer.next_seed)
    for mine, theirs in zip(again.model.parameters(), trainer.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_vocabulary_keeps_digits_apart_and_begins_with_the_bytes() -> None:
    ranks = train_ranks((f"the number 12{n} of lamps is large, {n}{n}" for n in range(300)), 264)
    assert [ranks[bytes([byte])] for byte in range(256)] == list(range(256))
    assert sorted(ranks.values()) == list(range(264))
    assert not any(len(token) > 1 and any(48 <= byte < 58 for byte in token) for token in ranks)


def test_too_little_text_for_a_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="size 4096: the texts give only"):
        train_ranks(["few words"], 4096)


def _prepared(out: Path) -> ModelConfig:
    return training.prepare(out, 0)


def _calls(dialogue: Any, step: Any) -> str:
    messages = [message for message in dialogue.messages() if message.get("reasoning_content") == step.reasoning]
    calls = next(message["tool_calls"] for message in messages if _same(message, step))
    inner = "".join(
        f"<|tool_call_begin|>{call['id']}<|tool_call_argument_begin|>{call['function']['arguments']}<|tool_call_end|>"
        for call in calls
    )
    return f"<|tool_calls_section_begin|>{inner}<|tool_calls_section_end|>"


def _same(message: Any, step: Any) -> bool:
    return [call["function"]["name"] for call in message.get("tool_calls", ())] == [call.name for call in step.calls]
