from pathlib import Path

import pytest
import safetensors.torch
import torch
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from safetensors.torch import save_file

from expertfleet.checkpoint.errors import CheckpointError
from expertfleet.checkpoint.files import INDEX_FILE
from expertfleet.checkpoint.tensors import Checkpoint


def test_every_tensor_equals_what_the_library_reads(tiny: Path) -> None:
    with Checkpoint.open(tiny) as checkpoint:
        seen = 0
        for path in tiny.glob("*.safetensors"):
            for name, expected in safetensors.torch.load_file(path).items():
                actual = checkpoint.read(name)
                assert actual.dtype == expected.dtype
                assert torch.equal(actual, expected), name
                seen += 1
        assert seen == len(checkpoint.tensors)


def test_expert_names_lead_to_unpackable_codes_and_their_scales(tiny: Path) -> None:
    with Checkpoint.open(tiny) as checkpoint:
        shapes = [(32, 64), (32, 64), (64, 32)]
        for (packed, scale), (rows, columns) in zip(checkpoint.expert_names(2, 5), shapes, strict=True):
            codes = unpack_from_int32(checkpoint.read(packed), 4, torch.Size((rows, columns)))
            assert codes.shape == (rows, columns)
            assert (codes.min().item(), codes.max().item()) == (-8, 7)
            assert checkpoint.read(scale).shape == (rows, columns // 32)
        assert [name.split(".")[-2] for name, _ in checkpoint.expert_names(2, 5)] == [
            "gate_proj",
            "up_proj",
            "down_proj",
        ]


def test_read_into_refuses_another_shape_or_dtype(tiny: Path) -> None:
    with Checkpoint.open(tiny) as checkpoint:
        target = torch.empty(64, dtype=torch.bfloat16)
        checkpoint.read_into("model.norm.weight", target)
        assert torch.equal(target, checkpoint.read("model.norm.weight"))
        for wrong in (torch.empty(64), torch.empty(63, dtype=torch.bfloat16), torch.empty(128).bfloat16()[::2]):
            with pytest.raises(AssertionError, match=r"model\.norm\.weight: destination is"):
                checkpoint.read_into("model.norm.weight", wrong)


def test_a_single_file_needs_no_index(copy: Path) -> None:
    (copy / INDEX_FILE).unlink()
    tensors = {
        "f16": torch.randn(3, 2).half(),
        "f32": torch.randn(()),
        "i64": torch.tensor([1 << 40, -3]),
        "empty": torch.empty(0, 4, dtype=torch.int32),
        "f64": torch.randn(2, dtype=torch.float64),
    }
    save_file(tensors, copy / "model.safetensors")
    with Checkpoint.open(copy) as checkpoint:
        for name in ("f16", "f32", "i64", "empty"):
            assert torch.equal(checkpoint.read(name), tensors[name])
        with pytest.raises(CheckpointError, match=r"model\.safetensors: f64: dtype F64 cannot be read"):
            checkpoint.read("f64")
