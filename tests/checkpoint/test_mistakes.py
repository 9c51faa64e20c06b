"""What is taken for a checkpoint and is none is called what it is, with what to do about it."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from expertfleet.checkpoint.check import check
from expertfleet.checkpoint.errors import CheckpointError
from expertfleet.checkpoint.files import INDEX_FILE, SINGLE_FILE, CheckpointFiles
from expertfleet.checkpoint.safetensors_header import read_header

SHARD = "model-00002-of-000004.safetensors"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9876543210\n"
PAGE = b"<!DOCTYPE html>\n<html><head><title>403 Forbidden</title></head></html>\n"


def fault(directory: Path) -> str:
    with pytest.raises(CheckpointError) as caught, CheckpointFiles.open(directory) as files:
        check(files)
    return str(caught.value)


@pytest.mark.parametrize(
    "file", [SHARD, "config.json", INDEX_FILE, "tiktoken.model", "tokenizer_config.json", "generation_config.json"]
)
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (POINTER, "is a git-lfs pointer, not the file of 9876543210 bytes it stands for; run `git lfs pull` there"),
        (PAGE, "is a web page; the download failed, fetch it again"),
        (PAGE.lower().replace(b"<!doctype html>\n", b"\n  "), "is a web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is a server's answer in XML"),
        (b"GGUF\x03\x00\x00\x00" + bytes(range(64)), "is a GGUF file; only safetensors in the published format"),
        (b"", "is empty; the download failed, fetch it again"),
        (bytes(4096), "begins with zeros: it was never written whole"),
    ],
)
def test_a_file_that_is_something_else_is_called_that(copy: Path, file: str, content: bytes, problem: str) -> None:
    (copy / file).write_bytes(content)
    found = fault(copy)
    assert found.startswith(f"{copy / file}: ")
    assert problem in found


def torch_file(path: Path) -> None:
    torch.save({"weight": torch.zeros(8)}, path)


def pickle_file(path: Path) -> None:
    path.write_bytes(pickle.dumps({"weight": list(range(100))}, protocol=2))


@pytest.mark.parametrize(
    ("write", "problem"),
    [
        (torch_file, "is a ZIP archive, as PyTorch writes .bin files"),
        (pickle_file, "is a Python pickle, as PyTorch writes .bin files"),
        (lambda path: path.write_text("Entry not found"), "is text, which begins 'Entry not found'"),
        (lambda path: path.write_text('{"error": "Invalid token"}'), 'is text, which begins \'{"error": "Invalid'),
        (lambda path: path.write_text("404"), "truncated: 3 bytes, a header needs 8; is text, which begins '404'"),
    ],
)
def test_a_shard_that_is_something_else_is_called_that(copy: Path, write: Callable[[Path], None], problem: str) -> None:
    write(copy / SHARD)
    assert fault(copy).startswith(f"{copy / SHARD}: {problem}")


@pytest.mark.parametrize("length", [0x0280, 0x8B1F, 0x04034B50])
def test_a_header_as_long_as_the_beginning_of_another_kind_of_file_is_read(tmp_path: Path, length: int) -> None:
    """Any first bytes may be a length: here those of a pickle, of gzip and of ZIP."""
    entry = {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}
    content = json.dumps({"a": entry}).encode().ljust(length)
    (tmp_path / SINGLE_FILE).write_bytes(length.to_bytes(8, "little") + content + bytes(8))
    assert list(read_header(tmp_path / SINGLE_FILE).tensors) == ["a"]


def renamed(directory: Path, rename: Callable[[str], str]) -> None:
    """All tensors, in files and index."""
    for path in directory.glob("*.safetensors"):
        save_file({rename(name): tensor for name, tensor in load_file(path).items()}, path)
    index = json.loads((directory / INDEX_FILE).read_text())
    placed = {rename(name): file for name, file in index["weight_map"].items()}
    (directory / INDEX_FILE).write_text(json.dumps({"weight_map": placed}))


@pytest.mark.parametrize(
    ("rename", "problem"),
    [
        (lambda name: f"language_model.{name}", "names that begin with 'language_model.' are not supported"),
        (
            lambda name: name.replace("model.", "model.language_model.", 1),
            "names that begin with 'model.language_model.' are not supported",
        ),
        (lambda name: f"base_model.model.{name}", "names that begin with 'base_model.model.' are not supported"),
        (lambda name: name.removeprefix("model."), "names that do not begin with 'model.' are not supported"),
    ],
)
def test_tensors_with_other_prefixes_are_seen(copy: Path, rename: Callable[[str], str], problem: str) -> None:
    renamed(copy, rename)
    found = fault(copy)
    assert found.startswith(f"{copy}: model.embed_tokens.weight: is in no file of the checkpoint; ")
    assert (
        f"; {rename('model.embed_tokens.weight')} is: {problem}; rename the tensors in the files and in the index"
        in found
    )


def test_a_prediction_layers_embedding_is_not_taken_for_a_prefix(copy: Path) -> None:
    renamed(copy, lambda name: name.replace("model.embed_tokens", "model.layers.3.embed_tokens"))
    assert fault(copy) == f"{copy}: model.embed_tokens.weight: is in no file of the checkpoint"


@pytest.mark.parametrize(
    ("renames", "problem"),
    [
        (
            {"weight_packed": "weight"},
            "up_proj.weight is: experts that are not quantized, or to FP8, are not supported",
        ),
        ({"weight_packed": "qweight"}, "up_proj.qweight is: experts quantized by GPTQ or AWQ are not supported"),
        ({"5.up_proj.weight_packed": "gate_up_proj"}, "experts.gate_up_proj is: experts joined in one tensor are not"),
    ],
)
def test_experts_in_another_format_are_called_that(copy: Path, renames: dict[str, str], problem: str) -> None:
    ((old, new),) = renames.items()
    one = "model.layers.1.mlp.experts.5.up_proj.weight_packed"
    renamed(copy, lambda name: name.replace(old, new) if name == one else name)
    assert fault(copy).startswith(f"{copy}: {one}: is in no file of the checkpoint; model.layers.1.mlp.experts.")
    assert problem in fault(copy)


def test_an_attention_in_int4_is_called_that(copy: Path) -> None:
    one = "model.layers.1.self_attn.o_proj.weight"
    renamed(copy, lambda name: f"{name}_packed" if name == one else name)
    assert fault(copy).endswith(
        f"{one}: is in no file of the checkpoint; {one}_packed is: only routed experts may be INT4"
    )


def test_a_tokenizer_json_does_not_do_for_a_vocabulary(copy: Path) -> None:
    (copy / "tiktoken.model").rename(copy / "elsewhere")
    assert fault(copy) == f"{copy / 'tiktoken.model'}: No such file"
    (copy / "tokenizer.json").write_text("{}")
    found = fault(copy)
    assert found.startswith(
        f"{copy / 'tiktoken.model'}: No such file; tokenizer.json, which is there, is not supported"
    )
    assert found.endswith("take its tiktoken.model")


def test_a_folder_around_a_checkpoint_is_seen_through(copy: Path, tmp_path: Path) -> None:
    cache = tmp_path / "hub" / "models--moonshotai--Kimi-K2-Thinking"
    snapshot = cache / "snapshots" / "612681931a8c906ddb349f8ad0f582cb552189cd"
    (cache / "refs").mkdir(parents=True)
    shutil.move(copy, snapshot)
    for above in (cache, cache / "snapshots", tmp_path / "hub", tmp_path):
        assert fault(above) == f"{above / 'config.json'}: No such file; {snapshot} has one: give that folder"
    shutil.copytree(snapshot, cache / "snapshots" / "7")
    assert fault(cache).endswith(f"{snapshot} has one: give that folder, or one of 1 more")


def test_a_folder_with_weights_of_another_kind_is_called_that(copy: Path) -> None:
    for path in (*copy.glob("*.safetensors"), copy / INDEX_FILE):
        path.unlink()
    neither = f"{copy}: holds neither {INDEX_FILE} nor {SINGLE_FILE}"
    assert fault(copy) == neither
    (copy / "pytorch_model-00001-of-00002.bin").touch()
    (copy / "pytorch_model-00002-of-00002.bin").touch()
    assert fault(copy).startswith(
        f"{neither}; it holds pytorch_model-00001-of-00002.bin and 1 more: PyTorch's .bin files"
    )
    (copy / "k2.Q4_0.gguf").touch()
    assert fault(copy).startswith(f"{neither}; it holds k2.Q4_0.gguf: GGUF files are not supported; only safetensors")
    (copy / "config.json").unlink()
    assert fault(copy).startswith(f"{copy / 'config.json'}: No such file; it holds k2.Q4_0.gguf: GGUF files are not")


def test_shards_without_their_index_are_seen(copy: Path) -> None:
    (copy / INDEX_FILE).unlink()
    found = fault(copy)
    assert "; it holds model-00001-of-000004.safetensors and 3 more: without the index nobody knows which" in found


def test_what_is_no_folder_is_called_that(copy: Path) -> None:
    assert fault(copy / SHARD) == f"{copy / SHARD}: is not a directory; give the folder that it lies in"
    for absent in (copy / "absent", Path("moonshotai/Kimi-K2-Thinking")):
        found = fault(absent)
        assert found.startswith(f"{absent}: is not a directory; give a checkpoint's folder on this machine, which ")


def test_a_configuration_that_is_missing_is_told_apart_from_an_index_that_is(copy: Path) -> None:
    (copy / "config.json").unlink()
    holds = "it holds model-00001-of-000004.safetensors and 3 more"
    assert fault(copy) == f"{copy / 'config.json'}: No such file; {holds}: fetch the configuration as well"


# Which may be missing, each of them, but not so.
OPTIONAL = ["generation_config.json", "chat_template.jinja", INDEX_FILE]


@pytest.mark.parametrize("file", [SHARD, "config.json", "tiktoken.model", "tokenizer_config.json", *OPTIONAL])
def test_a_link_to_nowhere_is_called_that(copy: Path, file: str) -> None:
    (copy / file).unlink()
    (copy / file).symlink_to("../../blobs/4d7a")
    assert "is a symbolic link to ../../blobs/4d7a, which does not exist; copy what it stands for as well" in fault(
        copy
    )


@pytest.mark.parametrize("ending", [".partial", ".incomplete"])
def test_a_shard_that_is_there_in_part_is_called_that(copy: Path, ending: str) -> None:
    (copy / SHARD).rename(copy / (SHARD + ending))
    assert fault(copy).endswith(
        f"which does not exist in {copy}; is there in part, as {SHARD}{ending}; finish the download"
    )


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", *OPTIONAL])
def test_a_text_that_is_there_in_part_is_called_that(copy: Path, file: str) -> None:
    (copy / file).rename(copy / f"{file}.partial")
    found = fault(copy)
    assert found.startswith(f"{copy / file}: No such file")
    assert found.endswith(f"; is there in part, as {file}.partial; finish the download")


def test_a_nested_language_model_is_called_that(copy: Path) -> None:
    data = json.loads((copy / "config.json").read_text())
    nested = {"architectures": ["KimiK25ForConditionalGeneration"], "model_type": "kimi_k25", "text_config": data}
    (copy / "config.json").write_text(json.dumps({**nested, "vision_config": {}}))
    found = fault(copy)
    assert found.startswith(f"{copy / 'config.json'}: text_config: ")
    assert "such as Kimi-K2.5 ('kimi_k25'), are not supported yet; those of DeepseekV3ForCausalLM alone are" in found


@pytest.mark.parametrize(
    ("quantization", "problem"),
    [
        (
            {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
            'quantization_config.quant_method: "fp8" is not supported (must be "compressed-tensors": INT4 pack-quantized',
        ),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, '"modelopt" is not supported'),
        (None, "quantization_config: missing: only INT4 pack-quantized experts, as Kimi-K2-Thinking is published"),
    ],
)
def test_a_checkpoint_of_another_precision_is_called_that(
    copy: Path, quantization: dict[str, object] | None, problem: str
) -> None:
    data = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**data, "quantization_config": quantization}))
    assert problem in fault(copy)
