"""Random content of a tensor, chunk by chunk, the same for the same seed, name and chunk on every machine.

Knows nothing of files. The INT4 codes are the generator's words as they are; every other value is a centre plus a step
times 16 random bits, several times as fast as drawing normals. The spreads keep activations near 1 through any number
of layers: 1/sqrt(in features) for a projection, and what is added to the residual divided by sqrt(2 layers).
"""

import hashlib
import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .model_config import ModelConfig
from .tensor_names import TensorSpec

CHUNK_BYTES = 16 << 20
_BLOCK = 1 << 16  # values per step, so that the intermediate stays in the cache
# The root of the mean square of uniform codes -8..7.
_CODE_SPREAD = math.sqrt(21.5)
# Logits so spread that sampling has a choice, while the first token can still be told from the second.
_LOGIT_SPREAD = 3.0
_GATE_SPREAD = 1.5
_BIAS_SPREAD = 0.05
_NORM_SPREAD = 0.1
_GROUP_SPREAD = 0.25

Array = npt.NDArray[Any]


class Spread(NamedTuple):
    """Uniform around ``centre`` with this standard deviation."""

    centre: float
    deviation: float


class RandomTensors:
    """The content of any tensor of one made-up checkpoint."""

    def __init__(self, config: ModelConfig, seed: int) -> None:
        self._config = config
        self._seed = seed
        self._residual = 1.0 / math.sqrt(2 * config.num_layers)

    def chunk(self, spec: TensorSpec, dtype: str, index: int) -> Array:
        """Bytes from ``index * CHUNK_BYTES`` on, a chunk of them or what is left, as an array whose memory they are."""
        assert spec.kind != "shape", f"{spec.name}: its content is not random"
        item_bytes = 2 if dtype == "BF16" else 4
        num_items = min(CHUNK_BYTES // item_bytes, math.prod(spec.shape) - index * CHUNK_BYTES // item_bytes)
        generator = _generator(self._seed, spec.name, index)
        if spec.kind == "packed":
            return random_bytes(generator, num_items * item_bytes)
        bits = random_bytes(generator, num_items * 2).view("<i2")
        return _spread_out(bits, self._spread(spec), dtype)

    def _spread(self, spec: TensorSpec) -> Spread:
        columns = spec.shape[-1]
        if spec.kind == "scale":
            columns *= self._config.group_size
            scale = self._residual_part(spec.name) / math.sqrt(columns) / _CODE_SPREAD
            return Spread(scale, scale * _GROUP_SPREAD)
        if spec.kind == "norm":
            return Spread(1.0, _NORM_SPREAD)
        if spec.kind == "gate_bias":
            return Spread(0.0, _BIAS_SPREAD)
        if spec.kind == "gate":
            return Spread(0.0, _GATE_SPREAD / math.sqrt(columns))
        if spec.name == "model.embed_tokens.weight":
            return Spread(0.0, 1.0)
        if spec.name == "lm_head.weight":
            return Spread(0.0, _LOGIT_SPREAD / math.sqrt(columns))
        return Spread(0.0, self._residual_part(spec.name) / math.sqrt(columns))

    def _residual_part(self, name: str) -> float:
        return self._residual if ".down_proj." in name or ".o_proj." in name else 1.0


def random_bytes(generator: np.random.SFC64, count: int) -> Array:
    """The generator's raw words (asked for through ``integers``, which is twice as fast as ``random_raw``)."""
    words = np.random.Generator(generator).integers(0, 1 << 64, -(-count // 8), dtype=np.uint64)
    return words.astype("<u8", copy=False).view(np.uint8)[:count]


def _generator(seed: int, name: str, index: int) -> np.random.SFC64:
    digest = hashlib.sha256(f"{seed} {name} {index}".encode()).digest()
    return np.random.SFC64(np.random.SeedSequence(int.from_bytes(digest, "big")))


def _spread_out(bits: Array, spread: Spread, dtype: str) -> Array:
    """``bits`` [N] int16 as values; bfloat16 by cutting off, which is as random as rounding."""
    step = np.float32(spread.deviation * math.sqrt(3.0) / (1 << 15))
    values = np.empty(bits.size, dtype="<u2" if dtype == "BF16" else "<f4")
    for start in range(0, bits.size, _BLOCK):
        block = np.multiply(bits[start : start + _BLOCK], step, dtype=np.float32)
        block += np.float32(spread.centre)
        if dtype == "BF16":
            values[start : start + _BLOCK] = block.astype("<f4", copy=False).view("<u2")[1::2]
        else:
            values[start : start + _BLOCK] = block
    return values
