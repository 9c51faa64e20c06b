"""What ``serve`` says while workers load: per seat the state, how far, how fast.

Knows nothing of where the figures come from but the controller's status message. A line is written when a seat changes
its state and, while it loads, once a second; after ten silent seconds comes what is missing. How experts are computed is
said once.
"""

import time
from collections.abc import Callable

from ...proto.generated import membership_pb2 as pb

_INTERVAL_S = 1.0
_SILENCE_S = 10.0


class Progress:
    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._say = say
        self._clock = clock
        self._states: dict[str, str] = {}
        self._said_at: dict[str, float] = {}
        self._loading_since: dict[str, float] = {}
        self._backends: set[str] = set()
        self._last_line_at = clock()

    def update(self, status: pb.FleetStatus) -> None:
        for worker in status.workers:
            if worker.role in ("attention", "expert"):
                self._update(worker)
        self.waiting_for(status.missing)

    def waiting_for(self, what: str) -> None:
        """Says what is missing after a long silence."""
        if what and self._clock() - self._last_line_at >= _SILENCE_S:
            self._write(f"waiting: {what}")

    def _write(self, line: str) -> None:
        self._last_line_at = self._clock()
        self._say(line)

    def _update(self, worker: pb.WorkerStatus) -> None:
        now, seat = self._clock(), worker.seat
        if worker.state == "loading":
            self._loading_since.setdefault(seat, now)
        changed = self._states.get(seat) != worker.state
        due = worker.state == "loading" and now - self._said_at.get(seat, now) >= _INTERVAL_S
        if changed or due:
            self._states[seat], self._said_at[seat] = worker.state, now
            if worker.state != "vacant":
                self._write(self._line(worker, now))
            if worker.state == "ready" and worker.role == "expert":
                self._tell_backend(worker.report.backend)

    def _tell_backend(self, backend: str) -> None:
        """How experts are computed, once for each way that a shard reports."""
        if backend and backend not in self._backends:
            self._backends.add(backend)
            self._write(f"experts: {backend}")

    def _line(self, worker: pb.WorkerStatus, now: float) -> str:
        report = worker.report
        done, total = report.bytes_loaded, report.bytes_total
        took_s = now - self._loading_since.get(worker.seat, now)
        rate = f", {_size(done / took_s)}/s" if took_s > 0.05 and done else ""
        if worker.state == "loading" and total:
            return f"{worker.seat} loading {100 * done // total} % of {_size(total)}{rate}"
        if worker.state == "ready":
            what = f"{worker.num_experts} experts, " if worker.role == "expert" else ""
            return f"{worker.seat} ready: {what}{_size(done)}{rate}, numerics {report.numerics}"
        return f"{worker.seat} {worker.state}" + (f": {report.error}" if report.error else "")


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.2f} MB"
