import math

import numpy as np
import pytest

from expertfleet.checkpoint.model_config import ModelConfig
from expertfleet.checkpoint.random_tensors import CHUNK_BYTES, RandomTensors, random_bytes
from expertfleet.checkpoint.tensor_names import TensorSpec, all_tensors
from expertfleet.checkpoint.tiny_config import TinyShape, config_document

CONFIG = ModelConfig.from_dict(config_document(TinyShape()))


def spec_named(name: str) -> TensorSpec:
    return next(spec for spec in all_tensors(CONFIG) if spec.name == name)


def values_of(name: str, seed: int = 3) -> np.ndarray:
    spec = spec_named(name)
    content = RandomTensors(CONFIG, seed).chunk(spec, spec.dtypes[0], 0)
    if spec.dtypes[0] == "BF16":
        return (content.astype(np.uint32) << 16).view(np.float32)
    return content


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 4096])
def test_bytes_are_the_generators_raw_words(count: int) -> None:
    expected = np.random.SFC64(5).random_raw(-(-count // 8)) if count else np.empty(0, np.uint64)
    assert random_bytes(np.random.SFC64(5), count).tobytes() == np.asarray(expected).tobytes()[:count]


def test_content_depends_on_seed_and_name_only() -> None:
    first, second = "model.layers.1.mlp.experts.0.up_proj.weight_packed", "lm_head.weight"
    assert np.array_equal(values_of(first), values_of(first))
    assert not np.array_equal(values_of(first), values_of(first, seed=4))
    assert not np.array_equal(values_of(first)[:100], values_of(second)[:100])


@pytest.mark.parametrize(
    ("name", "centre", "deviation"),
    [
        ("model.embed_tokens.weight", 0.0, 1.0),
        ("model.norm.weight", 1.0, 0.1),
        ("model.layers.1.mlp.gate.weight", 0.0, 1.5 / 16),
        ("model.layers.0.mlp.up_proj.weight", 0.0, 1 / 16),
        ("model.layers.0.mlp.down_proj.weight", 0.0, 1 / math.sqrt(512 * 8)),
    ],
)
def test_values_have_the_spread_that_keeps_activations_sane(name: str, centre: float, deviation: float) -> None:
    values = values_of(name)
    assert values.mean() == pytest.approx(centre, abs=4 * deviation / math.sqrt(values.size) + 0.01 * centre)
    assert values.std() == pytest.approx(deviation, rel=0.15)


def test_codes_use_all_sixteen_values_evenly() -> None:
    codes = values_of("model.layers.2.mlp.experts.9.gate_proj.weight_packed")
    counts = np.bincount(np.concatenate((codes & 15, codes >> 4)), minlength=16)
    assert counts.min() > 0.8 * counts.mean()


def test_a_large_tensor_is_cut_into_chunks_that_differ() -> None:
    rows = CHUNK_BYTES // 2 // 256
    spec = TensorSpec("lm_head.weight", (rows + 3, 256), "weight")
    random = RandomTensors(CONFIG, 1)
    first, second = random.chunk(spec, "BF16", 0), random.chunk(spec, "BF16", 1)
    assert (first.nbytes, second.nbytes) == (CHUNK_BYTES, 3 * 256 * 2)
    assert not np.array_equal(first[: second.size], second)
