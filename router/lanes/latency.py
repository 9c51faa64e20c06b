"""A shard's latency: how long it takes for a frame, and from when on a frame is a straggler that a replica is asked for as well.

Knows nothing of frames. Times are kept by powers of two of the number of routes. A straggler takes a quarter longer than the 95th
percentile of the last 256: a shard that is slow now and then is not excused by that, as it would be by a mean and its deviations.
Shards are compared by their time for each expert that a frame activates.
"""

import math
from bisect import bisect_left, insort
from collections import deque

_LEAST_S = 0.05
_UNKNOWN_S = 1.0
_ENOUGH = 8
_WINDOW = 256
_QUANTILE, _MARGIN = 0.95, 1.25
_LONG_GAIN = 1 / 64  # over many frames, as they are of all sizes
_FRESH_S = 10.0


class _Window:
    """The last times, in their order and sorted."""

    def __init__(self) -> None:
        self._times: deque[float] = deque()
        self._sorted: list[float] = []

    def __len__(self) -> int:
        return len(self._times)

    def add(self, seconds: float) -> None:
        if len(self._times) == _WINDOW:
            del self._sorted[bisect_left(self._sorted, self._times.popleft())]
        self._times.append(seconds)
        insort(self._sorted, seconds)

    def quantile(self, share: float) -> float:
        """The least time that ``share`` of them do not exceed."""
        return self._sorted[math.ceil(share * len(self._sorted)) - 1]


class LatencyTracker:
    def __init__(self) -> None:
        self._seen: dict[int, _Window] = {}  # by the number of routes' bit length

    def observe(self, num_routes: int, seconds: float) -> None:
        self._seen.setdefault(num_routes.bit_length(), _Window()).add(seconds)

    def limit_s(self, num_routes: int) -> float:
        """For sizes not seen often enough, as much more as there are more routes than in the largest smaller one known."""
        size = num_routes.bit_length()
        for known in range(size, 0, -1):
            times = self._seen.get(known)
            if times is not None and len(times) >= _ENOUGH:
                return max(_LEAST_S, _MARGIN * times.quantile(_QUANTILE) * float(2 ** (size - known)))
        return _UNKNOWN_S


class ExpertCost:
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

    def expected_s(self, num_experts: int) -> float:
        """For so many, by all that was ever observed."""
        return num_experts * (self._seconds / self._experts if self._experts else _UNKNOWN_S)
