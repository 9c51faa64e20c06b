"""The sampling defaults of ``generation_config.json``: what holds where a request says nothing.

Knows nothing of sampling, only what can be sampled with. ``None`` means that the file (or the key) is absent.
``do_sample: false`` is temperature 0.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .errors import CheckpointError
from .json_object import JsonObject, optional, read_json_object
from .model_config import read_token_ids

FILE = "generation_config.json"
# What an attention worker takes, of a request as of a default.
SAMPLING_RANGES: Mapping[str, tuple[float, float]] = {
    "temperature": (0.0, 100.0),
    "top_p": (1e-9, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.001, 100.0),
}
_WIRE = struct.Struct("<f")


@dataclass(frozen=True)
class GenerationDefaults:
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_new_tokens: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    @classmethod
    def from_dir(cls, directory: Path) -> "GenerationDefaults":
        if not optional(directory / FILE):
            return cls()
        source = read_json_object(directory / FILE)
        return cls(
            temperature=_temperature(source),
            top_p=_number(source, "top_p"),
            top_k=_top_k(source),
            min_p=_number(source, "min_p"),
            repetition_penalty=_number(source, "repetition_penalty"),
            max_new_tokens=source.integer("max_new_tokens") if source.has("max_new_tokens") else None,
            eos_token_ids=read_token_ids(source, "eos_token_id"),
        )

    def check_ids(self, directory: Path, vocab_size: int) -> None:
        """Raises CheckpointError."""
        for token_id in self.eos_token_ids:
            if token_id >= vocab_size:
                problem = f"{token_id} must be below vocab_size, {vocab_size}"
                raise CheckpointError(directory / FILE, "eos_token_id", problem)


def _temperature(source: JsonObject) -> float | None:
    if source.has("do_sample") and not source.boolean("do_sample"):
        return 0.0
    return _number(source, "temperature")


def _top_k(source: JsonObject) -> int | None:
    """0 and -1 both mean "no limit", which is also what None says."""
    value = source.integer("top_k", minimum=-1) if source.has("top_k") else 0
    return value if value > 0 else None


def _number(source: JsonObject, key: str) -> float | None:
    if not source.has(key):
        return None
    low, high = SAMPLING_RANGES[key]
    value = source.number(key, minimum=low, maximum=high)
    if _WIRE.unpack(_WIRE.pack(value))[0] < low:  # as the worker will see it
        raise source.error(key, f"{value} is out of range ({low} to {high})")
    return value
