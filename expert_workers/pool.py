"""Batches: what is queued for one layer becomes one GEMM, urgent work before bulk.

Knows nothing of the wire and of kernels: a job is a DISPATCH frame and the lane to answer on.
1. the handlers ``put`` jobs; 2. the runtime ``take``s a batch: slices of the most urgent job and of every other job of
the same layer, up to a number of routes; 3. what is left of a job stays queued behind more urgent ones, of which none
may pass it for longer than its patience.
"""

import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ..proto.codec import Dispatch
from ..proto.errors import Code, FleetError
from ..proto.rows import Rows

# A job too large for one slice lets smaller ones pass for so long before each of its slices.
_PATIENCE_S = 0.1


class ReplyLane(Protocol):
    """Where a job came from; all of it is for the runtime's thread."""

    @property
    def version(self) -> int:
        """Of its frames."""
        ...

    def send(self, frame: bytes) -> None: ...

    def deliver(self, job: "Job", first_route: int, rows: Rows) -> None:
        """Results [n, H] of the routes from ``first_route`` on."""


@dataclass(slots=True, eq=False)
class Job:
    """One DISPATCH frame under way; ``results`` [N, H] is where they belong if there is such a place."""

    frame: Dispatch
    lane: ReplyLane
    expires_at: float
    results: Rows | None = None
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


@dataclass(slots=True)
class Slice:
    """Routes ``first`` to ``first + count`` of a job."""

    job: Job
    first: int
    count: int

    @property
    def place(self) -> Rows | None:
        """Where its results belong, if the job has such a place."""
        results = self.job.results
        return None if results is None else results.part(self.first, self.count)


class Pool:
    """A thread-safe queue of jobs that hands out batches of one layer; ``wake`` is called when there is something to do."""

    def __init__(self, max_queued_per_lane: int, wake: Callable[[], None]) -> None:
        self.closed = False
        self._max_queued_per_lane = max_queued_per_lane
        self._wake = wake
        self._jobs: list[Job] = []
        self._lock = threading.Lock()

    def put(self, job: Job) -> None:
        """Raises FleetError: OVERLOADED when the job's lane has too many frames queued, DRAINING after ``close``."""
        with self._lock:
            if self.closed:
                raise FleetError(Code.DRAINING, "the shard is draining")
            if self._is_full(job.lane):
                raise FleetError(Code.OVERLOADED, f"{self._max_queued_per_lane} frames of this lane are queued")
            self._jobs.append(job)
        self._wake()

    def _is_full(self, lane: ReplyLane) -> bool:
        most = self._max_queued_per_lane
        return len(self._jobs) >= most and sum(queued.lane is lane for queued in self._jobs) >= most

    def take(self, max_routes: int) -> list[Slice]:
        """Slices of one layer, at most ``max_routes`` routes; none if there is no work."""
        if not self._jobs:
            return []
        with self._lock:
            self._jobs = [job for job in self._jobs if not job.cancelled]
            return self._cut(max_routes) if self._jobs else []

    def cancel(self, lane: ReplyLane, frame_id: int | None = None) -> bool:
        """Forgets what a lane no longer wants: one frame, or all of them; whether there was any."""
        with self._lock:
            unwanted = [job for job in self._jobs if job.lane is lane and frame_id in (None, job.frame.frame_id)]
            for job in unwanted:
                job.cancelled = True
            self._jobs = [job for job in self._jobs if not job.cancelled]
            return bool(unwanted)

    def close(self) -> None:
        """Refuses new jobs; ``take`` still hands out what is queued."""
        with self._lock:
            self.closed = True
        self._wake()

    def num_queued(self) -> int:
        return len(self._jobs)

    def asks_for(self, layer: int, experts: Collection[int]) -> bool:
        """Whether a queued job has routes to one of them."""
        wanted = np.fromiter(experts, dtype=np.int32)
        with self._lock:
            frames = [job.frame for job in self._jobs if job.frame.layer == layer]
        return any(np.isin(frame.route_experts, wanted).any() for frame in frames)

    def _cut(self, max_routes: int) -> list[Slice]:
        """The most urgent job decides the layer; jobs of that layer join in order of urgency."""
        now = time.monotonic()
        patient_since = now - _PATIENCE_S
        if len(self._jobs) > 1:
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
