"""Batches: what is queued for one layer becomes one GEMM, urgent work before bulk.

Knows nothing of the wire and of kernels: a job is a DISPATCH frame and somewhere to answer.
1. the handler ``put``s jobs; 2. the runtime ``take``s a batch: slices of the most urgent job and of every other job of
the same layer, up to a number of routes; 3. what is left of a job stays queued behind more urgent ones, of which none
may pass it for longer than its patience.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ..proto.codec import Dispatch
from ..proto.errors import Code, FleetError

# A job too large for one slice lets smaller ones pass for so long before each of its slices.
_PATIENCE_S = 0.1


@dataclass(slots=True, eq=False)
class Job:
    """One DISPATCH frame under way; ``answer`` takes encoded frames and may be called from any thread."""

    frame: Dispatch
    answer: Callable[[bytes], None]
    lane: object
    expires_at: float
    arrived_at: float = field(default_factory=time.monotonic)
    served_at: float = field(default_factory=time.monotonic)
    num_done: int = 0
    cancelled: bool = False

    @property
    def num_routes(self) -> int:
        return len(self.frame.route_rows)

    @property
    def num_left(self) -> int:
        return self.num_routes - self.num_done


@dataclass(frozen=True, slots=True)
class Slice:
    """Routes ``first`` to ``first + count`` of a job."""

    job: Job
    first: int
    count: int


class Pool:
    """A thread-safe queue of jobs that hands out batches of one layer."""

    def __init__(self, max_queued_per_lane: int) -> None:
        self._max_queued_per_lane = max_queued_per_lane
        self._jobs: list[Job] = []
        self._changed = threading.Condition()
        self._closed = False

    def put(self, job: Job) -> None:
        """Raises FleetError: OVERLOADED when the job's lane has too many frames queued, DRAINING after ``close``."""
        with self._changed:
            if self._closed:
                raise FleetError(Code.DRAINING, "the shard is draining")
            if sum(queued.lane is job.lane for queued in self._jobs) >= self._max_queued_per_lane:
                raise FleetError(Code.OVERLOADED, f"{self._max_queued_per_lane} frames of this lane are queued")
            self._jobs.append(job)
            self._changed.notify_all()

    def take(self, max_routes: int) -> list[Slice]:
        """Blocks for work; an empty list means closed and drained. Slices of one layer, at most ``max_routes`` routes."""
        with self._changed:
            while True:
                self._jobs = [job for job in self._jobs if not job.cancelled]
                if self._jobs:
                    return self._cut(max_routes)
                if self._closed:
                    return []
                self._changed.wait()

    def cancel(self, lane: object, frame_id: int | None = None) -> None:
        """Forgets what a lane no longer wants: one frame, or all of them."""
        with self._changed:
            for job in self._jobs:
                if job.lane is lane and frame_id in (None, job.frame.frame_id):
                    job.cancelled = True
            self._jobs = [job for job in self._jobs if not job.cancelled]

    def close(self) -> None:
        """Refuses new jobs; ``take`` hands out what is queued and then nothing."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def num_queued(self) -> int:
        with self._changed:
            return len(self._jobs)

    def _cut(self, max_routes: int) -> list[Slice]:
        """The most urgent job decides the layer; jobs of that layer join in order of urgency."""
        now = time.monotonic()
        patient_since = now - _PATIENCE_S
        self._jobs.sort(
            key=lambda job: (
                job.frame.priority,
                job.num_routes > max_routes and job.served_at > patient_since,
                job.arrived_at,
            )
        )
        layer = self._jobs[0].frame.layer
        batch: list[Slice] = []
        room = max_routes
        for job in self._jobs:
            if job.frame.layer != layer or not room:
                continue
            count = min(job.num_left, room)
            batch.append(Slice(job, job.num_done, count))
            job.num_done += count
            job.served_at = now
            room -= count
        self._jobs = [job for job in self._jobs if job.num_left]
        return batch
