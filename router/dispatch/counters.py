"""What the router has done since it started.

Knows nothing of what it counts. Written by the engine's thread alone, read by any.
"""

from dataclasses import dataclass

from ..lanes.frame_in_flight import FrameLane

# At most this share of all frames is hedged, but for a few.
_HEDGED_SHARE = 0.05
_HEDGES_AT_ONCE = 8

Timing = tuple[FrameLane, int, int, float, float]  # of an answered frame: routes, experts, seconds, and when


@dataclass(slots=True)
class Counters:
    dispatches: int = 0
    routes: int = 0
    frames: int = 0
    retried_frames: int = 0
    hedged_frames: int = 0
    failed_dispatches: int = 0
    faulty_rows: int = 0

    @property
    def may_hedge(self) -> bool:
        return self.hedged_frames + 1 <= _HEDGES_AT_ONCE + _HEDGED_SHARE * self.frames
