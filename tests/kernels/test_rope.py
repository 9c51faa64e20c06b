import functools
import math

import pytest
import torch
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
    DeepseekV3Attention,
    DeepseekV3RotaryEmbedding,
    apply_rotary_pos_emb_interleave,
)

from expertfleet.checkpoint.rotary import YarnConfig
from expertfleet.kernels.rope import Yarn, apply_rope, rope_table, softmax_scale, yarn_frequencies

make_yarn = functools.partial(YarnConfig, beta_fast=32.0, beta_slow=1.0, mscale=0.0, mscale_all_dim=0.0)
K2 = make_yarn(factor=64.0, original_max_position_embeddings=4096, beta_fast=1, beta_slow=1, mscale=1, mscale_all_dim=1)


def _config(yarn: Yarn | None, theta: float, dim: int, nope: int) -> DeepseekV3Config:
    scaling = {"rope_type": "default", "rope_theta": theta}
    if yarn is not None:
        scaling = {
            "rope_type": "yarn",
            "rope_theta": theta,
            "factor": yarn.factor,
            "original_max_position_embeddings": yarn.original_max_position_embeddings,
            "beta_fast": yarn.beta_fast,
            "beta_slow": yarn.beta_slow,
            "mscale": yarn.mscale,
            "mscale_all_dim": yarn.mscale_all_dim,
        }
    return DeepseekV3Config(
        hidden_size=64,
        num_attention_heads=2,
        num_key_value_heads=2,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_nope_head_dim=nope,
        qk_rope_head_dim=dim,
        v_head_dim=16,
        max_position_embeddings=262144,
        rope_parameters=scaling,
    )


YARNS = [
    None,
    K2,
    make_yarn(factor=40.0, original_max_position_embeddings=4096, mscale=1.0, mscale_all_dim=1.0),
    make_yarn(
        factor=32.0, original_max_position_embeddings=4096, beta_fast=16, beta_slow=2, mscale=0.7, mscale_all_dim=1.3
    ),
    make_yarn(factor=4.0, original_max_position_embeddings=128),
]


@pytest.mark.parametrize("yarn", YARNS)
@pytest.mark.parametrize("dim", [8, 16, 64])
def test_tables_are_transformers_own(yarn: Yarn | None, dim: int) -> None:
    oracle = DeepseekV3RotaryEmbedding(_config(yarn, 50000.0, dim, 32))
    positions = torch.randint(0, 300, (1, 20))
    cos, sin = oracle(torch.zeros(1, dtype=torch.float32), positions)
    table = rope_table(300, dim, 50000.0, yarn)
    assert torch.allclose(table.cos[positions[0]], cos[0, :, : dim // 2], atol=1e-6)
    assert torch.allclose(table.sin[positions[0]], sin[0, :, : dim // 2], atol=1e-6)


@pytest.mark.parametrize("yarn", YARNS)
def test_the_softmax_scale_is_transformers_own(yarn: Yarn | None) -> None:
    oracle = DeepseekV3Attention(_config(yarn, 10000.0, 64, 128), 0)
    assert softmax_scale(192, yarn) == pytest.approx(oracle.scaling, rel=1e-12)


def test_k2_has_a_hard_step_after_pair_19_and_its_scale() -> None:
    plain = 50000.0 ** -(torch.arange(0, 64, 2, dtype=torch.float64) / 64)
    found = yarn_frequencies(64, 50000.0, K2).double() / plain
    assert torch.allclose(found[:20], torch.ones(20, dtype=torch.float64), rtol=1e-5)
    assert torch.allclose(found[20:], torch.full((12,), 1 / 64, dtype=torch.float64), rtol=1e-5)
    assert softmax_scale(192, K2) == pytest.approx(0.14467963, abs=1e-8)
    assert softmax_scale(192, None) == pytest.approx(1 / math.sqrt(192))


def test_rotated_pairs_are_transformers_own() -> None:
    dim, heads = 16, 3
    config = _config(K2, 50000.0, dim, 32)
    positions = torch.randint(0, 4000, (9,))
    x, key = torch.randn(9, heads, dim), torch.randn(9, dim)
    cos, sin = DeepseekV3RotaryEmbedding(config)(x, positions[None])
    wanted, wanted_key = apply_rotary_pos_emb_interleave(x[None].transpose(1, 2), key[None, None], cos, sin)
    table = rope_table(4000, dim, 50000.0, K2)
    assert torch.allclose(apply_rope(x, positions, table), wanted[0].transpose(0, 1), atol=1e-5)
    assert torch.allclose(apply_rope(key, positions, table), wanted_key[0, 0], atol=1e-5)


def test_bf16_is_rounded_once() -> None:
    x = torch.randn(50, 8).bfloat16()
    positions = torch.arange(50)
    table = rope_table(50, 8, 10000.0, None)
    assert torch.equal(apply_rope(x, positions, table), apply_rope(x.float(), positions, table).bfloat16())


def test_scores_depend_on_distance_alone() -> None:
    table = rope_table(600, 32, 10000.0, None)
    q, k = torch.randn(1, 32), torch.randn(1, 32)
    near, far = (
        apply_rope(q, torch.tensor([p + 5]), table) @ apply_rope(k, torch.tensor([p]), table).t() for p in (3, 500)
    )
    assert torch.allclose(near, far, atol=1e-3)
