"""The fleet as its controller tells it to whoever asks, and how many shards its work wants.

Knows nothing of gRPC and of how the fleet came about: it reads the book of seats and what converges.
"""

import os
import socket
import time
from collections.abc import Mapping
from typing import Any

from ...membership.epoch import Epoch
from ...proto.generated import membership_pb2 as pb
from .autoscale import BusyShares, wanted_shards
from .reconciler import Reconciler
from .seats import Seat, SeatBook

_COMPUTED = "compute_seconds_total"


class Overview:
    def __init__(self, book: SeatBook, fleet: Reconciler, versions: Mapping[str, str]) -> None:
        self._book, self._fleet, self._versions = book, fleet, versions
        self._busy = BusyShares()

    def note(self, lease_id: int, report: pb.WorkerReport, now: float) -> None:
        if _COMPUTED in report.metrics:
            self._busy.note(lease_id, report.metrics[_COMPUTED], now)

    def of_seat(self, name: str, epoch: Epoch) -> pb.FleetStatus:
        """Of one worker, if it is there, and nothing of the others."""
        seat = self._book.seats.get(name)
        return self._status(epoch, workers=[self._worker(seat)] if seat is not None else [])

    def of_all(self, epoch: Epoch, address: str) -> pb.FleetStatus:
        """``address`` is the controller's own."""
        return self._status(
            epoch,
            workers=[self._controller(epoch, address), *map(self._worker, self._book.seats.values())],
            ready=epoch.complete,
            missing=self._book.missing() or ("" if epoch.complete else "the first epoch is being committed"),
            settled=self._fleet.settled(),
            replicas=self._fleet.replicas(),
            shortfall=self._fleet.shortfall(),
            coverage=self._fleet.coverage(),
            wanted_expert_shards=self._wanted_shards(),
        )

    def _status(self, epoch: Epoch, **told: Any) -> pb.FleetStatus:
        """With what anybody may ask who would join."""
        shape = self._book.shape
        return pb.FleetStatus(
            epoch=epoch.id.to_proto(), fingerprint=shape.fingerprint, dtype=shape.dtype, versions=self._versions, **told
        )

    def _wanted_shards(self) -> int:
        shards = [seat for seat in self._book.of_role("expert") if seat.serves]
        busy = self._busy.shares(seat.lease_id for seat in shards)
        num_experts = int(self._book.shape.all_experts().sum())
        return wanted_shards(busy, [seat.capacity for seat in shards], num_experts, self._book.wanted.replicas)

    def _controller(self, epoch: Epoch, address: str) -> pb.WorkerStatus:
        moved = self._fleet.num_moved
        report = pb.WorkerReport(
            seat="controller", state="ready", epoch=epoch.id.to_proto(), pid=os.getpid(),
            fingerprint=self._book.shape.fingerprint,
            metrics={
                "layouts_total": self._fleet.num_layouts,
                "moved_experts_total": moved,
                "moved_bytes_total": moved * self._book.shape.expert_bytes,
            },
        )  # fmt: skip
        return pb.WorkerStatus(
            role="controller", seat="controller", pid=os.getpid(), node=socket.gethostname(), address=address,
            state="ready", report=report,
        )  # fmt: skip

    def _worker(self, seat: Seat) -> pb.WorkerStatus:
        now = time.monotonic()
        return pb.WorkerStatus(
            role=seat.role,
            seat=seat.name,
            pid=seat.pid,
            node=seat.node,
            address=seat.address,
            state=seat.state,
            report=seat.report,
            num_experts=seat.held.count or self._fleet.num_planned(seat),
            wanted=seat.wanted,
            quarantined_by=self._book.quarantined_by(seat),
            offer=seat.offer,
            lease_id=seat.lease_id,
            held_s=now - seat.held_since if seat.live else 0.0,
            silent_s=now - seat.last_seen if seat.live else 0.0,
        )
