"""The sampling defaults of ``generation_config.json``: what holds where a request says nothing.

Knows nothing of sampling. ``None`` means that the file (or the key) is absent. ``do_sample: false`` is temperature 0.
"""

from dataclasses import dataclass
from pathlib import Path

from .json_object import JsonObject, read_json_object
from .model_config import read_token_ids

FILE = "generation_config.json"


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
        if not (directory / FILE).exists():
            return cls()
        source = read_json_object(directory / FILE)
        return cls(
            temperature=_temperature(source),
            top_p=source.number("top_p", maximum=1.0) if source.has("top_p") else None,
            top_k=_top_k(source),
            min_p=source.number("min_p", maximum=1.0) if source.has("min_p") else None,
            repetition_penalty=_optional_number(source, "repetition_penalty"),
            max_new_tokens=source.integer("max_new_tokens") if source.has("max_new_tokens") else None,
            eos_token_ids=read_token_ids(source, "eos_token_id"),
        )


def _temperature(source: JsonObject) -> float | None:
    if source.has("do_sample") and not source.boolean("do_sample"):
        return 0.0
    return _optional_number(source, "temperature")


def _top_k(source: JsonObject) -> int | None:
    """0 and -1 both mean "no limit", which is also what None says."""
    value = source.integer("top_k", minimum=-1) if source.has("top_k") else 0
    return value if value > 0 else None


def _optional_number(source: JsonObject, key: str) -> float | None:
    return source.number(key) if source.has(key) else None
