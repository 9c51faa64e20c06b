"""Whatever joins, leaves, dies or loads in whatever order: nobody is asked for what it does not hold, and all comes to an end."""

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from expertfleet.cluster.controller.desired_state import DesiredState
from expertfleet.cluster.controller.placement_settings import PlacementSettings
from expertfleet.cluster.controller.reconciler import Reconciler
from expertfleet.cluster.controller.seats import FleetShape, SeatBook
from expertfleet.membership.epoch import Epoch, EpochId, ExpertSet
from expertfleet.proto.errors import FleetError
from expertfleet.proto.generated import membership_pb2 as pb
from expertfleet.router.placement.expert_loads import Load

SHAPE = FleetShape(3, 6, 1, "a" * 64, "bfloat16")
MOST = 5


class Shard:
    """A process: what it holds, what it was told, and whether it serves."""

    def __init__(self, seat: str, number: int) -> None:
        self.seat, self.pid, self.address = seat, number, f"h:{number}"
        self.lease = 0
        self.state = "loading"
        self.held = np.zeros((SHAPE.num_layers, SHAPE.num_experts), dtype=bool)
        self.told = self.held
        self.left = False

    def obey(self, order: pb.Order) -> None:
        self.left = self.left or order.leave
        if order.HasField("hold"):
            self.told = ExpertSet.from_proto(order.hold).mask

    def work(self, most: int) -> None:
        """Gives back at once, loads at most so many."""
        self.held = self.held & self.told
        missing = np.argwhere(self.told & ~self.held)[:most]
        self.held[tuple(missing.T)] = True
        if self.state == "loading" and (self.held == self.told).all() and self.told.any():
            self.state = "ready"


def whole_fleet(capacity: int = 100, placing: PlacementSettings | None = None) -> tuple[SeatBook, Reconciler]:
    """Three shards at rest."""
    book = SeatBook(SHAPE, DesiredState.first(1, 3, 1.25), 3.0, 1)
    fleet = Reconciler(book, 1, 3.0, placing)
    leases = {}
    for number, seat in enumerate(book.seats):
        asked = pb.RegisterRequest(
            seat=seat, address=f"h:{number}", pid=number, node=f"n{number}", fingerprint=SHAPE.fingerprint,
            dtype=SHAPE.dtype, capacity=capacity,
        )  # fmt: skip
        leases[book.register(asked, 0.0).lease_id] = seat
    obey(book, fleet, leases)
    return book, fleet


def lay_out(fleet: Reconciler) -> None:
    if (question := fleet.question()) is not None:
        fleet.adopt(question.answer())


def rebalance(fleet: Reconciler) -> int:
    """How many experts move."""
    question = fleet.rebalancing()
    if question is None:
        return 0
    layout = question.answer()
    fleet.adopt(layout)
    return layout.moved


def obey(book: SeatBook, fleet: Reconciler, leases: dict[int, str], load: bytes = b"") -> None:
    for _ in range(6):
        orders = fleet.orders(0.0)
        for lease, seat in leases.items():
            told = pb.WorkerReport(seat=seat, state="ready", numerics="x", held=orders.get(lease, pb.Order()).hold)
            if seat.startswith("attention"):
                told.load = load
            book.report(lease, told, 0.0)
        lay_out(fleet)
        if (epoch := fleet.next_epoch(0.0)) is not None:
            fleet.forget_before(epoch.id)
    assert fleet.settled()


def test_copies_follow_the_load_a_few_at_a_time() -> None:
    book, fleet = whole_fleet()
    leases = {seat.lease_id: seat.name for seat in book.seats.values()}
    assert rebalance(fleet) == 0  # nobody has said what is asked
    rates = np.ones((3, 6), dtype=np.float32)
    rates[2, 4] = 100.0
    obey(book, fleet, leases, Load(rates, rates).to_bytes())
    moves = []
    for _ in range(12):
        moves.append(rebalance(fleet))
        obey(book, fleet, leases, Load(rates, rates).to_bytes())
    assert max(moves) == 1
    assert moves[-1] == 0
    assert sum(seat.held.holds(2, 4) for seat in book.of_role("expert")) > 1


def test_the_coverage_is_that_of_the_copies_that_are_there_now() -> None:
    book, fleet = whole_fleet()
    assert fleet.coverage() == pytest.approx(8 / 12)  # 15 copies of 12 experts on three nodes
    book.want(book.wanted.with_replicas(2))
    lay_out(fleet)
    assert fleet.coverage() == pytest.approx(8 / 12), "copies are counted before they are loaded"
    obey(book, fleet, {seat.lease_id: seat.name for seat in book.seats.values()})
    assert fleet.coverage() == 1.0
    book.lose(book.seats["expert-1"])
    assert 0.0 < fleet.coverage() < 1.0


@pytest.mark.parametrize(("capacity", "copies"), [(100, 27), (10, 22), (5, 15)])
def test_copies_fill_the_memory_but_for_what_shall_stay_spare(capacity: int, copies: int) -> None:
    """12 experts on three shards; a quarter stays spare, but 1.25 copies are the least."""
    book, fleet = whole_fleet(capacity, PlacementSettings(spare_memory=0.25))
    assert sum(seat.held.count for seat in book.of_role("expert")) == copies
    assert fleet.replicas() == pytest.approx(max(1.25, 0.75 * 3 * min(capacity, 12) / 12))


def test_loads_are_looked_at_when_something_has_changed_and_not_else(monkeypatch: pytest.MonkeyPatch) -> None:
    book, fleet = whole_fleet()
    leases = {seat.lease_id: seat.name for seat in book.seats.values()}
    rates = np.ones((3, 6), dtype=np.float32)
    obey(book, fleet, leases, Load(rates, rates).to_bytes())
    merged: list[int] = []
    monkeypatch.setattr(Load, "merge", lambda loads: merged.append(len(loads)) or loads[0])
    assert fleet.question() is None
    assert not merged
    book.want(book.wanted.with_replicas(2))
    assert fleet.question() is not None
    assert merged == [1]


@pytest.mark.parametrize("objective", ["tokens", "activated"])
def test_what_is_evened_out_is_the_operators(objective: Any) -> None:
    """An expert gets by far the most rows, but is read no oftener than the others."""
    book, fleet = whole_fleet(placing=PlacementSettings(objective))
    leases = {seat.lease_id: seat.name for seat in book.seats.values()}
    routes, activations = np.ones((3, 6), dtype=np.float32), np.ones((3, 6), dtype=np.float32)
    hot = next(expert for expert in range(6) if num_copies(book, 2, expert) == 1)
    routes[2, hot] = 1000.0
    for _ in range(12):
        obey(book, fleet, leases, Load(routes, activations).to_bytes())
        rebalance(fleet)
    assert (num_copies(book, 2, hot) > 1) == (objective == "tokens")


def num_copies(book: SeatBook, layer: int, expert: int) -> int:
    return sum(seat.held.holds(layer, expert) for seat in book.of_role("expert"))


def test_what_is_moved_is_counted() -> None:
    book, fleet = whole_fleet()
    assert (fleet.num_layouts >= 1, fleet.num_moved) == (True, 15)
    book.want(book.wanted.with_replicas(2))
    lay_out(fleet)
    assert fleet.num_moved == 24


def test_a_load_of_another_model_is_refused() -> None:
    book, _ = whole_fleet()
    lease = next(seat.lease_id for seat in book.of_role("attention"))
    rates = np.ones((3, 7), dtype=np.float32)
    with pytest.raises(FleetError, match="load: "):
        book.report(lease, pb.WorkerReport(seat="attention-0", state="ready", load=Load(rates, rates).to_bytes()), 0.0)


class FleetMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now, self.count, self.incarnation = 0.0, 0, 1
        self.wanted = DesiredState.first(1, 3, 1)
        self.shards: dict[str, Shard] = {}
        self.epochs: dict[EpochId, Epoch] = {}
        self.router = Epoch(EpochId(), SHAPE.fingerprint, SHAPE.dtype, (), (), complete=False)
        self.start_controller()
        for _ in range(3):
            for index in range(3):
                self.a_process_comes(index)
            self.everybody_works(50)
            self.follow()
        assert self.router.complete

    def start_controller(self) -> None:
        self.book = SeatBook(SHAPE, self.wanted, 3.0, self.incarnation)
        self.fleet = Reconciler(self.book, self.incarnation, self.now + 3.0)
        self.attention = self.book.register(self.request("attention-0", 999, "h:999", None), self.now).lease_id
        for shard in list(self.shards.values()):
            try:
                self.register(shard)
            except FleetError:  # it holds nothing, and nobody wants it any more
                assert not shard.held.any()
                assert not self.wanted.has(shard.seat)
                del self.shards[shard.seat]
        self.report()

    def request(self, seat: str, pid: int, address: str, held: ExpertSet | None) -> pb.RegisterRequest:
        return pb.RegisterRequest(
            seat=seat, address=address, pid=pid, node=f"n{pid}", fingerprint=SHAPE.fingerprint, dtype=SHAPE.dtype,
            held=held.to_proto() if held is not None else None,
        )  # fmt: skip

    def register(self, shard: Shard) -> None:
        held = ExpertSet.from_mask(shard.held) if shard.held.any() else None
        shard.lease = self.book.register(self.request(shard.seat, shard.pid, shard.address, held), self.now).lease_id

    def report(self) -> None:
        told = pb.WorkerReport(seat="attention-0", state="ready", numerics="a", epoch=self.router.id.to_proto())
        self.book.report(self.attention, told, self.now)
        for shard in self.shards.values():
            held = ExpertSet.from_mask(shard.held).to_proto()
            report = pb.WorkerReport(seat=shard.seat, state=shard.state, numerics="x", held=held)
            self.book.report(shard.lease, report, self.now)

    def step(self) -> None:
        self.now += 0.5
        self.report()
        lay_out(self.fleet)
        epoch = self.fleet.next_epoch(self.now)
        if epoch is not None:
            assert epoch.id not in self.epochs
            assert epoch.id > max(self.epochs, default=EpochId())
            self.epochs[epoch.id] = epoch
            self.check(epoch)
        for lease, order in self.fleet.orders(self.now).items():
            for shard in self.shards.values():
                if shard.lease == lease:
                    shard.obey(order)

    def check(self, epoch: Epoch) -> None:
        """No route to an expert that its member does not hold; complete means that everybody can be reached."""
        covered = np.zeros_like(SHAPE.all_experts())
        for member in epoch.experts:
            shard = self.shards.get(member.seat)
            if shard is not None and shard.address == member.address:
                assert not (member.held.mask & ~shard.held).any()
            covered |= member.held.mask
        assert epoch.complete == bool((covered >= SHAPE.all_experts()).all())

    def follow(self) -> None:
        """The router takes the newest epoch and acknowledges it; the fence lets older ones be forgotten."""
        newest = max(self.epochs, default=None)
        if newest is not None:
            self.router = self.epochs[newest]
            self.fleet.forget_before(newest)

    @rule(most=st.integers(1, 12))
    def everybody_works(self, most: int) -> None:
        for shard in self.shards.values():
            shard.work(most)
        self.step()

    @rule(most=st.integers(1, 12))
    def everybody_works_on(self, most: int) -> None:
        """Workers work more often than anything else happens."""
        self.everybody_works(most)
        self.everybody_works(most)

    @rule(index=st.integers(0, MOST - 1), most=st.integers(1, 12))
    def one_works(self, index: int, most: int) -> None:
        if shard := self.shards.get(f"expert-{index}"):
            shard.work(most)
        self.step()

    @rule()
    def the_router_follows(self) -> None:
        self.follow()

    @rule(index=st.integers(0, MOST - 1))
    def a_process_comes(self, index: int) -> None:
        seat = f"expert-{index}"
        if seat not in self.shards and self.wanted.has(seat):
            self.count += 1
            self.shards[seat] = Shard(seat, self.count)
            self.register(self.shards[seat])

    @rule(index=st.integers(0, 5 * MOST))
    def a_process_dies(self, index: int) -> None:
        """Now and then."""
        shard = self.shards.pop(f"expert-{index}", None)
        seat = self.book.holder(shard.lease) if shard is not None else None
        if seat is not None:
            self.book.lose(seat)

    @rule(count=st.integers(2, MOST), replicas=st.sampled_from([1.0, 1.0, 1.5, 2.0]))
    def somebody_scales(self, count: int, replicas: float) -> None:
        self.wanted = self.wanted.scaled("expert", count).with_replicas(replicas)
        self.book.want(self.wanted)

    @rule(index=st.integers(0, 2 * MOST))
    def a_process_wants_to_leave(self, index: int) -> None:
        shard = self.shards.get(f"expert-{index}")
        if shard is not None and shard.state == "ready":
            shard.state = "leaving"

    @rule(now=st.sampled_from([True, False, False, False]))
    def the_controller_starts_anew(self, now: bool) -> None:
        if now:
            self.incarnation += 1
            self.start_controller()

    @invariant()
    def what_the_router_uses_is_still_held(self) -> None:
        """Whoever lives at an address that the router's epoch names still holds what it names there."""
        for member in self.router.experts:
            shard = self.shards.get(member.seat)
            if shard is not None and shard.address == member.address and self.router.id.incarnation == self.incarnation:
                assert not (member.held.mask & ~shard.held).any()

    def teardown(self) -> None:
        """Left alone, every fleet comes to rest as it is wanted, and serves; who wants to leave does not wait for ever."""
        for turn in range(40):
            for seat in self.wanted.seats("expert"):
                self.a_process_comes(int(seat.rpartition("-")[2]))
            for name in [name for name, shard in self.shards.items() if shard.left or self.is_tired(shard, turn)]:
                shard = self.shards.pop(name)
                if (seat := self.book.holder(shard.lease)) is not None:
                    self.book.lose(seat)
            self.everybody_works(50)
            self.follow()
        assert sorted(self.shards) == sorted(self.wanted.seats("expert"))
        assert self.fleet.settled()
        assert max(self.epochs.values(), key=lambda epoch: epoch.id).complete

    @staticmethod
    def is_tired(shard: Shard, turn: int) -> bool:
        return shard.state == "leaving" and turn > 15


TestFleet = pytest.mark.filterwarnings("ignore")(FleetMachine.TestCase)
FleetMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.parametrize(("replicas", "more"), [(1.0, 0), (3.0, 0), (3.01, 1), (4.0, 1), (7.5, 5)])
def test_copies_beyond_the_number_of_shards_are_told(replicas: float, more: int) -> None:
    book, fleet = whole_fleet()
    book.want(DesiredState.first(1, 3, replicas))
    remedy = f"and 3 are there: start {more} more, or expertfleet scale --replicas 3"
    assert fleet.shortfall() == (
        f"replicas: {replicas:g} copies of each expert are wanted, every one on another shard, {remedy}" if more else ""
    )


def test_a_fleet_without_shards_lacks_no_copies_yet() -> None:
    assert Reconciler(SeatBook(SHAPE, DesiredState((), (), 4.0), 3.0, 1), 1, 3.0).shortfall() == ""
