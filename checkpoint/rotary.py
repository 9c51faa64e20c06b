"""The rotary embedding's parameters, in either spelling: ``rope_scaling`` + ``rope_theta``, or ``rope_parameters``.

Knows nothing of how they are computed. A parameter that is not understood is refused, never skipped.
"""

from dataclasses import dataclass

from .json_object import JsonObject

_KNOWN = {
    "type",
    "rope_type",
    "rope_theta",
    "factor",
    "original_max_position_embeddings",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
}
# Known with one supported setting each: null, or what YaRN does when they are absent.
_FIXED: dict[str, tuple[object, ...]] = {
    "attention_factor": (None,),
    "truncate": (None, True),
    "partial_rotary_factor": (None, 1.0, 1),
}


@dataclass(frozen=True)
class YarnConfig:
    factor: float
    original_max_position_embeddings: int
    beta_fast: float
    beta_slow: float
    mscale: float
    mscale_all_dim: float


def read_rotary(config: JsonObject) -> tuple[float, YarnConfig | None]:
    """``(rope_theta, yarn)``; where both spellings are present they must say the same."""
    readings = {}
    if config.has("rope_parameters"):
        readings["rope_parameters"] = _read_block(config, config.object("rope_parameters"))
    if config.has("rope_scaling"):
        readings["rope_scaling"] = _read_block(config, config.object("rope_scaling"))
    if not readings:
        return _theta(config, None), None
    if len(set(readings.values())) > 1:
        raise config.error("rope_scaling", "contradicts rope_parameters")
    return next(iter(readings.values()))


def _read_block(config: JsonObject, block: JsonObject) -> tuple[float, YarnConfig | None]:
    for key in block.data:
        if key not in _KNOWN and key not in _FIXED:
            raise block.error(key, "is not supported")
    for key, allowed in _FIXED.items():
        block.expect(key, *allowed)
    kind_key = "rope_type" if block.has("rope_type") else "type"
    kind = block.text(kind_key)
    if kind == "default":
        return _theta(config, block), None
    if kind != "yarn":
        raise block.error(kind_key, f"{kind!r} is not supported (must be 'yarn' or 'default')")
    yarn = YarnConfig(
        factor=block.number("factor", minimum=1.0),
        original_max_position_embeddings=block.integer("original_max_position_embeddings"),
        beta_fast=block.number("beta_fast", minimum=1e-6, default=32.0),
        beta_slow=block.number("beta_slow", minimum=1e-6, default=1.0),
        mscale=block.number("mscale", default=1.0),
        mscale_all_dim=block.number("mscale_all_dim", default=0.0),
    )
    if yarn.mscale != 1.0 and (yarn.mscale == 0.0 or yarn.mscale_all_dim == 0.0):
        # Implementations disagree about what one without the other means.
        raise block.error("mscale", f"{yarn.mscale} without mscale_all_dim is not supported (must be 1.0)")
    theta = _theta(config, block)
    if theta == 1.0:
        raise config.error("rope_theta", "1.0 must be above 1 with YaRN: all pairs would turn alike")
    return theta, yarn


def _theta(config: JsonObject, block: JsonObject | None) -> float:
    holder = block if block is not None and block.has("rope_theta") else config
    return holder.number("rope_theta", minimum=1.0, maximum=1e12)
