"""How long a shard usually takes for a frame, and when a wait for it becomes unusual.

Knows nothing of frames. Times are kept by powers of two of the number of routes; the limit is the smoothed time and four mean
deviations, as TCP has it for retransmission (RFC 6298). Shards are compared by their time for each expert that a frame activates.
"""

import math

_LEAST_S = 0.05
_UNKNOWN_S = 1.0
_ENOUGH = 8
_GAIN, _DEVIATION_GAIN, _DEVIATIONS = 1 / 8, 1 / 4, 4
_LONG_GAIN = 1 / 64  # over many frames, as they are of all sizes
_FRESH_S = 10.0


class Pace:
    def __init__(self) -> None:
        self._seen: dict[int, tuple[int, float, float]] = {}  # bit length → samples, smoothed time, mean deviation

    def observe(self, num_routes: int, seconds: float) -> None:
        size = num_routes.bit_length()
        count, smoothed, deviation = self._seen.get(size, (0, seconds, seconds / 2))
        deviation += _DEVIATION_GAIN * (abs(seconds - smoothed) - deviation)
        smoothed += _GAIN * (seconds - smoothed)
        self._seen[size] = count + 1, smoothed, deviation

    def limit_s(self, num_routes: int) -> float:
        """For sizes not seen often enough, as much more as there are more routes than in the largest smaller one known."""
        size = num_routes.bit_length()
        for known in range(size, 0, -1):
            count, smoothed, deviation = self._seen.get(known, (0, 0.0, 0.0))
            if count >= _ENOUGH:
                return max(_LEAST_S, float((smoothed + _DEVIATIONS * deviation) * 2 ** (size - known)))
        return _UNKNOWN_S


class ExpertPace:
    """Smoothed seconds over smoothed experts, so that a frame weighs as much as it asked for."""

    def __init__(self) -> None:
        self._seconds, self._experts, self._last = 0.0, 0.0, -math.inf

    def observe(self, num_experts: int, seconds: float, now: float) -> None:
        gain = _LONG_GAIN if self._experts else 1.0
        self._seconds += gain * (seconds - self._seconds)
        self._experts += gain * (num_experts - self._experts)
        self._last = now

    def seconds(self, now: float) -> float | None:
        """For one expert; None if nothing was observed of late. For any thread."""
        return self._seconds / self._experts if now - self._last <= _FRESH_S else None
