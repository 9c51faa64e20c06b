"""The controller's book of seats: who sits where, on which lease, in which state, holding what.

Knows nothing of gRPC, Ray or clocks (the caller says what time it is). A worker takes a seat with ``register``, keeps
it with ``report`` and loses it with ``expire`` or ``lose``. Whoever holds a seat and can work keeps it: another process gets it when that
lease is over. Seats that nobody wants any more stay in the book as long as somebody sits there.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from ...membership.epoch import ExpertSet, Member
from ...proto.errors import Code, FleetError, shown
from ...proto.generated import membership_pb2 as pb
from ...router.placement.expert_loads import Load
from .desired_state import DesiredState, split_seat

Role = Literal["expert", "attention", "gateway"]
WORKER_STATES = ("starting", "loading", "ready", "leaving", "draining", "failed")
# Those in which a worker takes work.
SERVING = ("ready", "leaving")
# Those of a seat without a process.
NOBODY = ("vacant", "lost", "left")
# Those in which a worker gives its seat up.
GOING = ("draining", "failed")


@dataclass(frozen=True)
class FleetShape:
    """What the controller has to know of the model and the fleet."""

    num_layers: int
    num_experts: int
    num_dense_layers: int
    fingerprint: str
    dtype: str
    expert_bytes: int = 0  # of one layer's expert in the checkpoint; 0 is not known

    def all_experts(self) -> npt.NDArray[np.bool_]:
        """[num_layers, num_experts]: those that there are."""
        return ExpertSet.full(self.num_layers, self.num_experts, self.num_dense_layers).mask


@dataclass
class Seat:
    """One place in the fleet and what is known of the process that has it."""

    name: str
    role: Role
    wanted: bool
    lease_id: int = 0
    state: str = "vacant"
    last_seen: float = 0.0
    pid: int = 0
    node: str = ""
    address: str = ""
    capacity: int = 0  # 0: as many experts as there are
    held: ExpertSet = field(default_factory=ExpertSet.empty)
    report: pb.WorkerReport = field(default_factory=pb.WorkerReport)
    load: Load | None = None  # how often an attention worker asks each expert, when it said so last
    offer: str = ""  # of the node that its process was started for
    held_since: float = 0.0

    @property
    def live(self) -> bool:
        return self.lease_id != 0

    @property
    def serves(self) -> bool:
        return self.live and self.state in SERVING

    @property
    def stays(self) -> bool:
        """Whether work may be planned for it: it is wanted and does not want to go."""
        return self.wanted and self.state not in ("leaving", *GOING)

    def holder(self, now: float) -> str:
        """Who has it, for people."""
        return f"pid {self.pid} on {self.node} at {self.address}, for {now - self.held_since:.0f} s"

    def describe(self) -> str:
        """State for people: ``expert-1 loading 42 %``."""
        total = self.report.bytes_total
        if self.state == "loading" and total:
            return f"{self.name} loading {100 * self.report.bytes_loaded // total} %"
        return f"{self.name} {self.state}" + (f": {self.report.error}" if self.report.error else "")

    def member(self, held: ExpertSet | None = None) -> Member:
        max_model_len = int(self.report.metrics.get("max_model_len", 0))
        return Member(self.name, self.address, self.report.numerics, held or ExpertSet.empty(), max_model_len)


class SeatBook:
    """All seats of one fleet. Nothing here is thread-safe: one loop owns it."""

    def __init__(self, shape: FleetShape, wanted: DesiredState, lease_s: float, incarnation: int = 0) -> None:
        self.shape = shape
        self.lease_s = lease_s
        self._incarnation = incarnation
        # NOTE: no lease of an earlier controller may look like one of this one's.
        self._lease_ids = itertools.count((incarnation << 20) + 1)
        self._by_lease: dict[int, Seat] = {}
        self._seats: dict[str, Seat] = {}
        self.want(wanted)

    @property
    def seats(self) -> Mapping[str, Seat]:
        """Attention workers first, then expert shards, then gateways, each by ordinal."""
        return self._seats

    @property
    def wanted(self) -> DesiredState:
        return self._wanted

    def want(self, wanted: DesiredState) -> None:
        """From now on these seats are to be taken; others vanish as soon as nobody sits there."""
        self._wanted = wanted
        names: dict[str, Role] = dict.fromkeys(wanted.seats("attention"), "attention")
        names |= dict.fromkeys(wanted.seats("expert"), "expert")
        for name, role in names.items():
            self._seats.setdefault(name, Seat(name, role, wanted=True)).wanted = True
        for seat in list(self._seats.values()):
            if seat.role != "gateway" and seat.name not in names:
                seat.wanted = False
                self._forget_if_gone(seat)
        self._sort()

    def register(self, request: pb.RegisterRequest, now: float) -> pb.RegisterReply:
        held = self._expert_set(request.held)
        seat = self._seat(request.seat, held)
        self._check(seat, request)
        if (rival := self.rival(request)) is not None:
            what = f"seat: {seat.name} is held by {rival.holder(now)}; end that process first, or take another seat"
            raise FleetError(Code.BAD_REQUEST, what)
        self._by_lease.pop(seat.lease_id, None)
        seat.lease_id = next(self._lease_ids)
        seat.node, seat.pid, seat.address, seat.offer = request.node, request.pid, request.address, request.offer
        seat.held_since, seat.last_seen = now, now
        seat.state, seat.held, seat.capacity = "starting", held, request.capacity
        seat.report = pb.WorkerReport(seat=seat.name, fingerprint=request.fingerprint, held=request.held)
        self._by_lease[seat.lease_id] = seat
        return pb.RegisterReply(lease_id=seat.lease_id, lease_s=self.lease_s, incarnation=self._incarnation)

    def rival(self, request: pb.RegisterRequest) -> Seat | None:
        """The seat that is asked for, if another process holds it and can work. Who listens at its address is its successor."""
        seat = self._seats.get(request.seat)
        if seat is None or not seat.live or seat.state in GOING or seat.address == request.address:
            return None
        return seat

    def report(self, lease_id: int, report: pb.WorkerReport, now: float) -> bool:
        """False when the lease is not, or no longer, known."""
        seat = self._by_lease.get(lease_id)
        if seat is None or report.seat != seat.name:
            return False
        if report.state not in WORKER_STATES:
            raise FleetError(Code.BAD_REQUEST, f"state: {shown(report.state)} is not one of {', '.join(WORKER_STATES)}")
        if seat.role == "expert" and report.held != seat.report.held:
            seat.held = self._expert_set(report.held)
        if report.load:
            seat.load = self._load(report.load)
            report.ClearField("load")  # nobody asks for it as it came
        seat.state, seat.last_seen, seat.report = report.state, now, report
        return True

    def holder(self, lease_id: int) -> Seat | None:
        return self._by_lease.get(lease_id)

    def expire(self, now: float) -> list[Seat]:
        """Ends the leases that nobody renewed."""
        lost = [seat for seat in self._by_lease.values() if now - seat.last_seen > self.lease_s]
        for seat in lost:
            self.lose(seat)
        return lost

    def lose(self, seat: Seat) -> None:
        """Ends its lease; a seat that nobody wants disappears with it."""
        self._by_lease.pop(seat.lease_id, None)
        seat.lease_id = 0
        if seat.state != "failed":
            seat.state = "left" if seat.state == "draining" else "lost"
        self._forget_if_gone(seat)

    def forgive(self, seconds: float) -> None:
        """Adds ``seconds`` to every lease: nobody could report while the controller itself stood still."""
        for seat in self._by_lease.values():
            seat.last_seen += seconds

    def of_role(self, role: Role) -> tuple[Seat, ...]:
        return tuple(seat for seat in self.seats.values() if seat.role == role)

    def quarantined_by(self, shard: Seat) -> list[str]:
        """Attention workers of which one said so of the process that sits there."""
        return [
            seat.name for seat in self.of_role("attention") if seat.live and shard.address in seat.report.quarantined
        ]

    def missing(self) -> str:
        """What keeps the fleet from serving, in one line; empty when nothing does."""
        gaps: list[str] = []
        if not any(seat.serves for seat in self.of_role("attention")):
            gaps.append("no attention worker is ready")
        uncovered = self.shape.all_experts().copy()
        total = int(uncovered.sum())
        for seat in self.of_role("expert"):
            if seat.serves and seat.held.count:
                uncovered &= ~seat.held.mask
        if uncovered.any():
            gaps.append(f"{int(uncovered.sum())} of {total} experts have no live replica{self._lack_of_room(total)}")
        if not gaps:
            return ""
        waiting = [seat.describe() for seat in self.seats.values() if seat.role != "gateway" and not seat.serves]
        return "; ".join(gaps) + (f" ({', '.join(waiting)})" if waiting else "")

    def _lack_of_room(self, num_experts: int) -> str:
        """Said once everybody is there: more of them, or more memory, are what the fleet waits for."""
        shards = [seat for seat in self.of_role("expert") if seat.wanted]
        room = sum(min(seat.capacity or num_experts, num_experts) for seat in shards)
        if room >= num_experts or not all(seat.live for seat in shards):
            return ""
        return f", and the {len(shards)} expert shards have room for {room}: start more, or give them more --memory-gib"

    def _forget_if_gone(self, seat: Seat) -> None:
        if not seat.live and not seat.wanted:
            self._seats.pop(seat.name, None)

    def _seat(self, name: str, held: ExpertSet) -> Seat:
        """Gateways come as they like. Who holds experts that an earlier controller gave it keeps its seat, until it is relieved."""
        seat = self._seats.get(name)
        if seat is not None:
            return seat
        role, ordinal = split_seat(name)
        if role == "gateway" and ordinal >= 0:
            return self._add(Seat(name, "gateway", wanted=False))
        if role == "expert" and ordinal >= 0 and held.count:
            return self._add(Seat(name, "expert", wanted=False))
        wanted = self._wanted
        counts = f"{len(wanted.attention)} attention workers and {len(wanted.expert)} expert shards"
        raise FleetError(Code.BAD_REQUEST, f"seat: {shown(name)} does not exist in a fleet of {counts}")

    def _add(self, seat: Seat) -> Seat:
        self._seats[seat.name] = seat
        self._sort()
        return seat

    def _sort(self) -> None:
        roles = ("attention", "expert", "gateway")
        ranked = sorted(self._seats.values(), key=lambda seat: (roles.index(seat.role), split_seat(seat.name)[1]))
        self._seats = {seat.name: seat for seat in ranked}

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

    def _load(self, message: bytes) -> Load:
        load = Load.from_bytes(message)
        grid = self.shape.num_layers, self.shape.num_experts
        if load.routes.shape != grid:
            raise FleetError(Code.BAD_REQUEST, f"load: {load.routes.shape} layers and experts, the fleet has {grid}")
        return load

    def _expert_set(self, message: pb.ExpertSet) -> ExpertSet:
        held = ExpertSet.from_proto(message)
        grid = self.shape.num_layers, self.shape.num_experts
        if not held.count:
            return ExpertSet.empty(*grid)
        if held.mask.shape != grid:
            layers, experts = held.mask.shape
            wanted = f"{grid[0]} layers × {grid[1]} experts"
            raise FleetError(Code.BAD_REQUEST, f"held: {layers} layers × {experts} experts, the fleet has {wanted}")
        return held
