"""The generated format is the published one: the public libraries pack, unpack and run it."""

from pathlib import Path
from types import ModuleType

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32

from expertfleet.checkpoint.make_tiny import make_tiny
from expertfleet.checkpoint.tensors import Checkpoint


def test_codes_are_packed_as_the_library_packs_them(tiny: Path, oracle: ModuleType) -> None:
    with Checkpoint.open(tiny) as checkpoint:
        for packed_name, scale_name in checkpoint.expert_names(1, 3):
            packed, scale = checkpoint.read(packed_name), checkpoint.read(scale_name)
            shape = torch.Size(checkpoint.read(packed_name.replace("_packed", "_shape")).tolist())
            codes = unpack_from_int32(packed, 4, shape)
            assert torch.equal(pack_to_int32(codes, 4), packed)
            expected = codes.float() * scale.float().repeat_interleave(32, dim=1)
            assert torch.equal(oracle.dequantized(checkpoint, packed_name, scale_name), expected)


def test_transformers_runs_the_checkpoint_with_sane_activations(tmp_path: Path, oracle: ModuleType) -> None:
    make_tiny(tmp_path / "m", seed=11, layers=6)
    model = oracle.load_oracle(tmp_path / "m", torch.float32)
    ids = torch.randint(0, 2048, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = model(ids, output_hidden_states=True)
    assert [0.5 < state.std().item() < 2.0 for state in output.hidden_states] == [True] * 7
    assert 2.0 < output.logits.std().item() < 4.0
    attention = model.model.layers[0].self_attn
    assert attention.scaling == pytest.approx(128**-0.5 * 2.004740, rel=1e-5)
    assert attention.kv_a_layernorm.variance_epsilon == 1e-6
    assert model.model.norm.variance_epsilon == 1e-5


def test_the_bfloat16_oracle_differs_by_rounding_only(tiny: Path, oracle: ModuleType) -> None:
    exact = oracle.load_oracle(tiny, torch.float32)
    rounded = oracle.load_oracle(tiny, torch.bfloat16)
    for name, expected in exact.state_dict().items():
        actual = rounded.state_dict()[name]
        kept = name.endswith("e_score_correction_bias")
        assert actual.dtype == (torch.float32 if kept else torch.bfloat16)
        assert torch.equal(actual, expected if kept else expected.bfloat16())
