"""The controller's book of seats: who sits where, on which lease, in which state, holding what.

Knows nothing of gRPC, Ray or clocks (the caller says what time it is). A worker takes a seat with ``register``, keeps
it with ``report`` and loses it with ``expire``; the newest process to claim a seat has it.
"""

import itertools
from dataclasses import dataclass, field
from typing import Literal

from ..membership.epoch import ExpertSet, Member
from ..proto.errors import Code, FleetError
from ..proto.generated import membership_pb2 as pb
from ..router.placement import place

Role = Literal["expert", "attention", "gateway"]
WORKER_STATES = ("starting", "loading", "ready", "draining", "failed")


@dataclass(frozen=True)
class FleetShape:
    """What the controller has to know of the model and the fleet."""

    num_layers: int
    num_experts: int
    num_dense_layers: int
    fingerprint: str
    dtype: str
    attention_workers: int
    expert_shards: int
    replicas: int = 1

    def assignments(self) -> list[ExpertSet]:
        """What each expert shard shall hold, in the order of their seats."""
        placement = place(
            self.num_layers, self.num_experts, self.num_dense_layers, self.expert_shards, self.replicas
        )  # [num_shards, num_layers, num_experts]
        return [ExpertSet.from_mask(held) for held in placement]


@dataclass
class Seat:
    """One place in the fleet and what is known of the process that has it."""

    name: str
    role: Role
    assigned: ExpertSet
    lease_id: int = 0
    state: str = "vacant"
    last_seen: float = 0.0
    pid: int = 0
    node: str = ""
    address: str = ""
    held: ExpertSet = field(default_factory=ExpertSet.empty)
    report: pb.WorkerReport = field(default_factory=pb.WorkerReport)
    ousted: set[tuple[str, int, str]] = field(default_factory=set)

    @property
    def live(self) -> bool:
        return self.lease_id != 0

    @property
    def process(self) -> tuple[str, int, str]:
        return (self.node, self.pid, self.address)

    def member(self) -> Member:
        return Member(self.name, self.address, self.report.numerics, self.held)

    def describe(self) -> str:
        """State for people: ``expert-1 loading 42 %``."""
        total = self.report.bytes_total
        if self.state == "loading" and total:
            return f"{self.name} loading {100 * self.report.bytes_loaded // total} %"
        return f"{self.name} {self.state}" + (f": {self.report.error}" if self.report.error else "")


class SeatBook:
    """All seats of one fleet. Nothing here is thread-safe: one loop owns it."""

    def __init__(self, shape: FleetShape, lease_s: float, incarnation: int = 0) -> None:
        self.shape = shape
        self.lease_s = lease_s
        # NOTE: no lease of an earlier controller may look like one of this one's.
        self._lease_ids = itertools.count((incarnation << 20) + 1)
        self._by_lease: dict[int, Seat] = {}
        nothing = ExpertSet.empty(shape.num_layers, shape.num_experts)
        self.seats: dict[str, Seat] = {}
        for index in range(shape.attention_workers):
            self._add(Seat(f"attention-{index}", "attention", nothing))
        for index, assigned in enumerate(shape.assignments()):
            self._add(Seat(f"expert-{index}", "expert", assigned))

    def register(self, request: pb.RegisterRequest, now: float) -> pb.RegisterReply:
        seat = self._seat(request.seat)
        self._check(seat, request)
        process = (request.node, request.pid, request.address)
        if seat.live and process != seat.process:
            if process in seat.ousted:
                raise FleetError(Code.BAD_REQUEST, f"seat {seat.name} was taken over by pid {seat.pid} on {seat.node}")
            seat.ousted.add(seat.process)
        self._by_lease.pop(seat.lease_id, None)
        held = self._expert_set(request.held)
        seat.lease_id = next(self._lease_ids)
        seat.node, seat.pid, seat.address = process
        seat.state, seat.last_seen, seat.held = "starting", now, held
        seat.report = pb.WorkerReport(seat=seat.name, fingerprint=request.fingerprint, held=request.held)
        self._by_lease[seat.lease_id] = seat
        assignment = held if held.count else seat.assigned
        return pb.RegisterReply(lease_id=seat.lease_id, lease_s=self.lease_s, assignment=assignment.to_proto())

    def report(self, lease_id: int, report: pb.WorkerReport, now: float) -> bool:
        """False when the lease is not, or no longer, known."""
        seat = self._by_lease.get(lease_id)
        if seat is None or report.seat != seat.name:
            return False
        if report.state not in WORKER_STATES:
            raise FleetError(Code.BAD_REQUEST, f"state: {report.state!r} is not one of {', '.join(WORKER_STATES)}")
        if seat.role == "expert" and report.held != seat.report.held:
            seat.held = self._expert_set(report.held)
        seat.state, seat.last_seen, seat.report = report.state, now, report
        return True

    def expire(self, now: float) -> list[Seat]:
        """Ends the leases that nobody renewed; a gateway's seat disappears with its lease."""
        lost = [seat for seat in self._by_lease.values() if now - seat.last_seen > self.lease_s]
        for seat in lost:
            del self._by_lease[seat.lease_id]
            seat.lease_id = 0
            if seat.state != "failed":
                seat.state = "lost"
            if seat.role == "gateway":
                del self.seats[seat.name]
        return lost

    def forgive(self, seconds: float) -> None:
        """Adds ``seconds`` to every lease: nobody could report while the controller itself stood still."""
        for seat in self._by_lease.values():
            seat.last_seen += seconds

    def ready(self, role: Role) -> tuple[Seat, ...]:
        return tuple(seat for seat in self.seats.values() if seat.role == role and seat.state == "ready")

    def missing(self) -> str:
        """What keeps the fleet from serving, in one line; empty when nothing does."""
        gaps: list[str] = []
        if not self.ready("attention"):
            gaps.append("no attention worker is ready")
        wanted = ExpertSet.full(*self._grid, self.shape.num_dense_layers)
        uncovered = wanted.mask.copy()  # [num_layers, num_experts]
        for seat in self.ready("expert"):
            uncovered &= ~seat.held.mask
        if uncovered.any():
            gaps.append(f"{int(uncovered.sum())} of {wanted.count} experts have no live replica")
        if not gaps:
            return ""
        waiting = [seat.describe() for seat in self.seats.values() if seat.role != "gateway" and seat.state != "ready"]
        return "; ".join(gaps) + (f" ({', '.join(waiting)})" if waiting else "")

    @property
    def _grid(self) -> tuple[int, int]:
        return self.shape.num_layers, self.shape.num_experts

    def _add(self, seat: Seat) -> None:
        self.seats[seat.name] = seat

    def _seat(self, name: str) -> Seat:
        seat = self.seats.get(name)
        if seat is not None:
            return seat
        role, _, ordinal = name.rpartition("-")
        if role == "gateway" and ordinal.isdecimal():
            self._add(Seat(name, "gateway", ExpertSet.empty()))
            return self.seats[name]
        counts = f"{self.shape.attention_workers} attention workers and {self.shape.expert_shards} expert shards"
        raise FleetError(Code.BAD_REQUEST, f"seat: {name!r} does not exist in a fleet of {counts}")

    def _check(self, seat: Seat, request: pb.RegisterRequest) -> None:
        if seat.role == "gateway":
            return
        if request.fingerprint != self.shape.fingerprint:
            ours, theirs = self.shape.fingerprint[:16], request.fingerprint[:16] or "none"
            what = f"{seat.name} has opened checkpoint {theirs}…, this fleet serves {ours}…"
            raise FleetError(Code.FOREIGN_CHECKPOINT, what)
        if request.dtype != self.shape.dtype:
            what = f"{seat.name} computes in {request.dtype or 'no dtype'}, this fleet in {self.shape.dtype}"
            raise FleetError(Code.WRONG_DTYPE, what)

    def _expert_set(self, message: pb.ExpertSet) -> ExpertSet:
        held = ExpertSet.from_proto(message)
        if not held.count:
            return ExpertSet.empty(*self._grid)
        if held.mask.shape != self._grid:
            layers, experts = held.mask.shape
            wanted = f"{self.shape.num_layers} layers × {self.shape.num_experts} experts"
            raise FleetError(Code.BAD_REQUEST, f"held: {layers} layers × {experts} experts, the fleet has {wanted}")
        return held
