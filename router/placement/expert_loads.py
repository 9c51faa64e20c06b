"""How often each expert is asked: counts of routes and of activations that fade with time, and their compact form.

Knows nothing of who asks and who reads. ``count`` is called for every dispatch by one thread, the router's, and only adds;
``snapshot`` may be called by another. A rate is what was counted, halved for every half-life since, over the time in which it was.
"""

import math
import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...proto.errors import Code, FleetError

Counts = npt.NDArray[np.int64]
Faded = npt.NDArray[np.float64]
Rates = npt.NDArray[np.float32]
# Layers, experts, the scale of the routes' rates and that of the activations'; rates follow as float16 of 0 to 1.
_HEADER = struct.Struct("<HHff")
_MAX_PAIRS = 1 << 20
_MAX_RATE = 1e12  # per second


@dataclass(frozen=True)
class Load:
    """Rates per second, as of one moment."""

    routes: Rates  # [L, E] tokens that asked each expert
    activations: Rates  # [L, E] dispatches that did, however many of their tokens

    def to_bytes(self) -> bytes:
        """About 4 bytes a pair; a rate loses its last bits, and below 6e-8 of the largest it becomes zero."""
        num_layers, num_experts = self.routes.shape
        scales = [float(rates.max(initial=0.0)) for rates in (self.routes, self.activations)]
        parts = [_HEADER.pack(num_layers, num_experts, *scales)]
        for rates, scale in zip((self.routes, self.activations), scales, strict=True):
            parts.append((rates.astype(np.float64) / (scale or 1.0)).astype("<f2").tobytes())
        return b"".join(parts)

    @staticmethod
    def from_bytes(data: bytes) -> "Load":
        """Raises FleetError BAD_REQUEST for anything that ``to_bytes`` cannot have written."""
        if len(data) < _HEADER.size:
            raise FleetError(Code.BAD_REQUEST, f"load: {len(data)} bytes, its header alone has {_HEADER.size}")
        num_layers, num_experts, *scales = _HEADER.unpack_from(data)
        pairs = num_layers * num_experts
        if not 0 < pairs <= _MAX_PAIRS:
            shape = f"{num_layers} layers × {num_experts} experts"
            raise FleetError(Code.BAD_REQUEST, f"load: {shape}, must be 1 to {_MAX_PAIRS} pairs")
        if len(data) != _HEADER.size + 4 * pairs:
            shape = f"{num_layers} layers × {num_experts} experts need {_HEADER.size + 4 * pairs}"
            raise FleetError(Code.BAD_REQUEST, f"load: {len(data)} bytes, {shape}")
        for scale in scales:
            if not 0 <= scale <= _MAX_RATE:
                raise FleetError(Code.BAD_REQUEST, f"load: {scale:g} per second, must be 0 to {_MAX_RATE:g}")
        parts = np.frombuffer(data, dtype="<f2", offset=_HEADER.size).astype(np.float32)
        if not ((parts >= 0) & (parts <= 1)).all():
            raise FleetError(Code.BAD_REQUEST, "load: parts of the largest rate must lie between 0 and 1")
        routes, activations = parts.reshape(2, num_layers, num_experts)
        return Load(routes * np.float32(scales[0]), activations * np.float32(scales[1]))

    @staticmethod
    def merge(loads: "list[Load]") -> "Load":
        """What several workers ask together; raises FleetError BAD_REQUEST if they are not of one shape."""
        shapes = {load.routes.shape for load in loads}
        if len(shapes) != 1:
            raise FleetError(Code.BAD_REQUEST, f"load: shapes {sorted(shapes)}, must be one")
        return Load(
            np.sum([load.routes for load in loads], axis=0, dtype=np.float32),
            np.sum([load.activations for load in loads], axis=0, dtype=np.float32),
        )


class ExpertLoads:
    """What one router has asked, newest weighing most."""

    def __init__(self, num_layers: int, num_experts: int, half_life_s: float) -> None:
        for name, value in (("num_layers", num_layers), ("num_experts", num_experts)):
            if value < 1:
                raise ValueError(f"{name}: {value}, must be at least 1")
        if not (math.isfinite(half_life_s) and half_life_s > 0):
            raise ValueError(f"half_life_s: {half_life_s}, must be a finite number above 0")
        self._num_experts = num_experts
        self._half_life_s = half_life_s
        # Since the router began, never reset: who reads takes differences, so counting needs no lock.
        self._routes: Counts = np.zeros((num_layers, num_experts), dtype=np.int64)
        self._activations: Counts = np.zeros_like(self._routes)
        self._seen: tuple[Counts, Counts] = (self._routes.copy(), self._activations.copy())
        self._faded: tuple[Faded, Faded] = (np.zeros(self._routes.shape), np.zeros(self._routes.shape))
        self._began: float | None = None
        self._last = 0.0

    def count(self, layer: int, experts: npt.NDArray[np.int64]) -> None:
        """One dispatch's routes [N], by expert."""
        asked = np.bincount(experts, minlength=self._num_experts)
        self._routes[layer] += asked
        self._activations[layer] += asked > 0

    def snapshot(self, now: float) -> Load:
        """As of ``now``, in seconds of any clock that does not go back; the first call only begins the time."""
        routes, activations = self._routes.copy(), self._activations.copy()
        if self._began is None:
            self._began = self._last = now
        elapsed = max(0.0, now - self._last)
        rate = math.log(2) / self._half_life_s
        # What was counted since the last look came evenly spread over that time.
        kept, spread = math.exp(-rate * elapsed), -math.expm1(-rate * elapsed) / (rate * elapsed) if elapsed else 1.0
        self._faded = (
            self._faded[0] * kept + (routes - self._seen[0]) * spread,
            self._faded[1] * kept + (activations - self._seen[1]) * spread,
        )
        self._seen, self._last = (routes, activations), max(now, self._last)
        weight = -math.expm1(-rate * (self._last - self._began)) / rate  # seconds, as they are faded themselves
        if weight == 0.0:
            return Load(np.zeros_like(routes, dtype=np.float32), np.zeros_like(routes, dtype=np.float32))
        return Load((self._faded[0] / weight).astype(np.float32), (self._faded[1] / weight).astype(np.float32))
