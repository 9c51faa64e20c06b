import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from expertfleet.checkpoint.chat_template import ChatTemplate
from expertfleet.checkpoint.check import check
from expertfleet.checkpoint.errors import CheckpointError
from expertfleet.checkpoint.files import CheckpointFiles
from expertfleet.checkpoint.generation import GenerationDefaults
from expertfleet.checkpoint.make_tiny import MARKER_FILE, make_tiny
from expertfleet.checkpoint.tokenizer import Tokenizer

SMALL = {"hidden": 64, "layers": 2, "experts": 4, "top_k": 2, "expert_width": 32, "dense_width": 32, "vocab": 600}


def digests(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}


def test_the_same_options_give_the_same_bytes(tmp_path: Path) -> None:
    make_tiny(tmp_path / "a", seed=5, threads=1, **SMALL)
    make_tiny(tmp_path / "b", seed=5, threads=3, **SMALL)
    make_tiny(tmp_path / "c", seed=6, threads=1, **SMALL)
    first, second, third = digests(tmp_path / "a"), digests(tmp_path / "b"), digests(tmp_path / "c")
    assert first == second
    assert first["model-00001-of-000003.safetensors"] != third["model-00001-of-000003.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def test_the_default_is_a_whole_k2_in_small(tmp_path: Path) -> None:
    config = make_tiny(tmp_path / "m")
    assert (config.num_experts, config.top_k, len(config.moe_layers), config.latent_width) == (64, 8, 3, 320)
    assert config.max_position_embeddings == 262_144
    tokenizer = Tokenizer.from_dir(tmp_path / "m")
    assert ChatTemplate.from_dir(tmp_path / "m", tokenizer).render_ids([{"role": "user", "content": "hi"}])
    defaults = GenerationDefaults.from_dir(tmp_path / "m")
    assert (defaults.temperature, defaults.eos_token_ids) == (1.0, (tokenizer.special["<|im_end|>"],))
    with CheckpointFiles.open(tmp_path / "m") as files:
        assert len(files.headers) == 5
        assert check(files).unused == ()


@pytest.mark.parametrize(
    "options",
    [
        {"q_lora_rank": 0},
        {"dense_layers": 0},
        {"groups": 2, "topk_groups": 1},
        {"shared_experts": 2, "heads": 3},
        {"vocab": 512, "context": 32_768},
        {"nope_head_dim": 16, "rope_head_dim": 8, "v_head_dim": 24},
    ],
)
def test_every_variant_passes_its_own_check(tmp_path: Path, options: dict[str, int]) -> None:
    config = make_tiny(tmp_path / "m", **{**SMALL, **options})
    with CheckpointFiles.open(tmp_path / "m") as files:
        assert files.config == config
        check(files)
    tokenizer = Tokenizer.from_dir(tmp_path / "m")
    assert tokenizer.vocab_size == config.vocab_size
    assert tokenizer.decode_bytes(tokenizer.encode_text("Hellö 世界")).decode() == "Hellö 世界"


def test_like_k2_overridden_keeps_the_other_true_dimensions(tmp_path: Path) -> None:
    config = make_tiny(
        tmp_path / "m", like="kimi-k2-thinking", layers=2, experts=8, hidden=64, heads=1, expert_width=32,
        dense_width=64, q_lora_rank=32, vocab=163_840,
    )  # fmt: skip
    assert (config.latent_width, config.qk_head_dim, config.vocab_size) == (576, 192, 163_840)
    tokenizer = Tokenizer.from_dir(tmp_path / "m")
    names = ("<|im_end|>", "<think>", "</think>", "<|tool_calls_section_begin|>", "[PAD]")
    assert [tokenizer.special[name] for name in names] == [163_586, 163_606, 163_607, 163_595, 163_839]


def test_only_an_earlier_output_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "m"
    target.mkdir()
    make_tiny(target, seed=1, **SMALL)
    make_tiny(target, seed=2, **SMALL)
    assert json.loads((target / MARKER_FILE).read_text())["options"]["seed"] == 2
    (target / "notes.txt").write_text("mine")
    before = digests(target)
    with pytest.raises(CheckpointError, match=r"m: notes\.txt: was not written by make-tiny"):
        make_tiny(target, seed=3, **SMALL)
    assert digests(target) == before
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="file: is in the way"):
        make_tiny(tmp_path / "file", **SMALL)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_tiny(tmp_path / "m", progress=stop, **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_too_little_space_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10_000_000_000))
    with pytest.raises(CheckpointError, match=r"15\.6 GB needed, 10\.0 GB free"):
        make_tiny(tmp_path / "m", like="kimi-k2-thinking", layers=2)
    assert list(tmp_path.iterdir()) == []


def test_progress_reaches_the_sum_of_all_bytes(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    make_tiny(tmp_path / "m", progress=lambda done, total: seen.append((done, total)), **SMALL)
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
    assert seen[-1] == (index["metadata"]["total_size"], index["metadata"]["total_size"])


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"hidden": 100}, "--hidden 100: must be a multiple of 32"),
        ({"expert_width": 48}, "--expert-width 48: must be a multiple of 32"),
        ({"top_k": 65}, "--top-k 65: must not exceed the experts that can be chosen, 64"),
        ({"layers": 1}, "--layers 1: must exceed --dense-layers, 1"),
        ({"vocab": 300}, "--vocab 300: must be 512 or more"),
        ({"experts": 0}, "--experts 0: must be 1 or more"),
        ({"groups": 3}, "--groups 3: must cut 64 experts into equal groups of 2 or more"),
        ({"topk_groups": 2}, "--topk-groups 2: must not exceed --groups, 1"),
        ({"groups": 16, "topk_groups": 1}, "--top-k 8: must not exceed the experts that can be chosen, 4"),
        ({"rope_head_dim": 7}, "qk_rope_head_dim: 7 must be even"),
        ({"like": "kimi-k3"}, "--like kimi-k3: must be one of kimi-k2-thinking"),
        ({"hiden": 64}, "--hiden: no such dimension"),
    ],
)
def test_impossible_options_are_one_clear_line(tmp_path: Path, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        make_tiny(tmp_path / "m", **options)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("module", ["make_tiny", "check", "command", "tokenizer", "chat_template", "generation"])
def test_no_torch_is_imported(module: str) -> None:
    code = f"import sys, expertfleet.checkpoint.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
