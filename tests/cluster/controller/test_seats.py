import numpy as np
import pytest

from expertfleet.cluster.controller.desired_state import DesiredState
from expertfleet.cluster.controller.seats import FleetShape, SeatBook
from expertfleet.membership.epoch import ExpertSet
from expertfleet.proto.errors import Code, FleetError
from expertfleet.proto.generated import membership_pb2 as pb

SHAPE = FleetShape(4, 10, 1, "a" * 64, "bfloat16")
WANTED = DesiredState.first(attention_workers=1, expert_shards=3, replicas=1)
SHARES = [ExpertSet.from_mask(SHAPE.all_experts() & (np.arange(10) % 3 == index)) for index in range(3)]


def request(seat: str, pid: int = 7, **changes: object) -> pb.RegisterRequest:
    asked = pb.RegisterRequest(
        seat=seat, address=f"127.0.0.1:{pid}", pid=pid, node="n", fingerprint=SHAPE.fingerprint, dtype=SHAPE.dtype
    )
    for name, value in changes.items():
        setattr(asked, name, value)
    return asked


def take(book: SeatBook, seat: str, pid: int = 7, now: float = 0.0) -> int:
    return book.register(request(seat, pid), now).lease_id


def report(seat: str, state: str, held: ExpertSet | None = None) -> pb.WorkerReport:
    return pb.WorkerReport(seat=seat, state=state, held=(held or ExpertSet.empty()).to_proto())


def all_ready(book: SeatBook, copies: int = 1) -> dict[str, int]:
    leases = {}
    for name in book.seats:
        leases[name] = take(book, name)
        held = ExpertSet.empty()
        if name.startswith("expert"):
            first = int(name[-1])
            masks = [SHARES[(first + copy) % 3].mask for copy in range(copies)]
            held = ExpertSet.from_mask(np.logical_or.reduce(masks))
        book.report(leases[name], report(name, "ready", held), 0.0)
    return leases


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"seat": "expert-3"}, Code.BAD_REQUEST, "seat: 'expert-3' does not exist in a fleet of 1 attention workers and 3"),
        ({"seat": "poet-0"}, Code.BAD_REQUEST, "seat: 'poet-0' does not exist"),
        ({"fingerprint": "b" * 64}, Code.FOREIGN_CHECKPOINT, "expert-1 has opened checkpoint bbbbbbbbbbbbbbbb…, this fleet"),
        ({"dtype": "float32"}, Code.WRONG_DTYPE, "expert-1 computes in float32, this fleet in bfloat16"),
    ],
)  # fmt: skip
def test_a_stranger_is_refused(change: dict[str, str], code: Code, message: str) -> None:
    with pytest.raises(FleetError, match=message) as caught:
        SeatBook(SHAPE, WANTED, 3.0).register(request(**{"seat": "expert-1", **change}), 0.0)
    assert caught.value.code is code


def test_experts_of_another_grid_are_refused() -> None:
    asked = request("expert-1")
    asked.held.CopyFrom(ExpertSet.full(5, 10).to_proto())
    with pytest.raises(FleetError, match="held: 5 layers × 10 experts, the fleet has 4 layers × 10 experts"):
        SeatBook(SHAPE, WANTED, 3.0).register(asked, 0.0)


def test_who_holds_a_seat_keeps_it_and_who_asks_for_it_is_told_who_that_is() -> None:
    book = SeatBook(SHAPE, WANTED, 3.0)
    first = take(book, "expert-1", pid=7)
    assert book.rival(request("expert-1", 8)) is book.seats["expert-1"]
    with pytest.raises(FleetError, match=r"seat: expert-1 is held by pid 7 on n at 127\.0\.0\.1:7, for 2 s") as caught:
        take(book, "expert-1", pid=8, now=2.0)
    assert caught.value.code is Code.BAD_REQUEST
    assert book.report(first, report("expert-1", "ready"), 2.1)


def test_a_seat_is_the_next_ones_once_its_lease_is_over_and_the_old_one_cannot_take_it_back() -> None:
    book = SeatBook(SHAPE, WANTED, 3.0)
    old = take(book, "expert-1", pid=7)
    book.expire(3.5)
    new = take(book, "expert-1", pid=8, now=3.5)
    assert not book.report(old, report("expert-1", "ready"), 3.6)
    with pytest.raises(FleetError, match="held by pid 8"):
        take(book, "expert-1", pid=7, now=3.6)
    assert book.report(new, report("expert-1", "loading"), 3.7)


@pytest.mark.parametrize("state", ["draining", "failed"])
def test_who_gives_its_seat_up_does_not_keep_it_from_its_successor(state: str) -> None:
    book = SeatBook(SHAPE, WANTED, 3.0)
    old = take(book, "expert-1", pid=7)
    book.report(old, report("expert-1", state), 0.1)
    new = take(book, "expert-1", pid=8, now=0.2)
    assert not book.report(old, report("expert-1", state), 0.3)
    assert book.report(new, report("expert-1", "loading"), 0.3)


def test_who_listens_at_the_holders_address_is_its_successor() -> None:
    book = SeatBook(SHAPE, WANTED, 3.0)
    take(book, "expert-1", pid=7)
    assert book.register(request("expert-1", 8, address="127.0.0.1:7"), 0.1).lease_id
    assert book.seats["expert-1"].pid == 8


def test_a_seat_keeps_the_offer_of_the_process_that_has_it() -> None:
    book = SeatBook(SHAPE, WANTED, 3.0)
    book.register(request("expert-1", 7, offer="a"), 0.0)
    assert book.seats["expert-1"].offer == "a"
    book.expire(9.0)
    take(book, "expert-1", pid=8, now=9.0)
    assert book.seats["expert-1"].offer == ""


def test_a_lease_runs_out_without_reports_and_lasts_with_them() -> None:
    book = SeatBook(SHAPE, WANTED, 3.0)
    silent, talking = take(book, "expert-0"), take(book, "expert-1")
    book.report(talking, report("expert-1", "loading"), 2.0)
    assert [seat.name for seat in book.expire(4.0)] == ["expert-0"]
    assert book.seats["expert-0"].state == "lost"
    assert not book.report(silent, report("expert-0", "ready"), 4.1)
    assert book.report(talking, report("expert-1", "ready"), 4.1)


@pytest.mark.parametrize(("said", "known_as"), [("draining", "left"), ("leaving", "lost"), ("ready", "lost")])
def test_a_worker_that_drained_has_left_and_any_other_is_lost(said: str, known_as: str) -> None:
    book = SeatBook(SHAPE, WANTED, 3.0)
    book.report(take(book, "expert-0"), report("expert-0", said), 0.0)
    book.lose(book.seats["expert-0"])
    assert book.seats["expert-0"].state == known_as


def test_a_failed_worker_stays_failed_with_its_reason_after_its_lease() -> None:
    book = SeatBook(SHAPE, WANTED, 3.0)
    lease = take(book, "expert-0")
    book.report(lease, pb.WorkerReport(seat="expert-0", state="failed", error="no memory"), 0.0)
    book.expire(9.0)
    assert book.seats["expert-0"].describe() == "expert-0 failed: no memory"


def test_a_controller_that_stood_still_blames_nobody() -> None:
    book = SeatBook(SHAPE, WANTED, 3.0)
    take(book, "expert-0")
    book.forgive(20.0)
    assert book.expire(21.0) == []


def test_who_is_quarantined_is_a_process_not_a_seat() -> None:
    book = SeatBook(SHAPE, WANTED, 3.0)
    take(book, "expert-1", pid=8)
    accuser = take(book, "attention-0", pid=9)
    told = report("attention-0", "ready")
    told.quarantined.append("127.0.0.1:8")
    book.report(accuser, told, 0.0)
    assert book.quarantined_by(book.seats["expert-1"]) == ["attention-0"]
    assert not book.quarantined_by(book.seats["expert-0"])
    book.lose(book.seats["expert-1"])
    take(book, "expert-1", pid=10)
    assert not book.quarantined_by(book.seats["expert-1"])


def test_missing_is_empty_only_when_every_expert_and_an_attention_worker_are_ready() -> None:
    book = SeatBook(SHAPE, WANTED, 3.0)
    assert book.missing().startswith("no attention worker is ready; 30 of 30 experts have no live replica")
    leases = all_ready(book)
    assert book.missing() == ""
    progress = pb.WorkerReport(seat="expert-2", state="loading", bytes_loaded=42, bytes_total=100)
    book.report(leases["expert-2"], progress, 0.0)
    assert book.missing() == "9 of 30 experts have no live replica (expert-2 loading 42 %)"


def test_with_replicas_one_lost_shard_leaves_nothing_missing() -> None:
    book = SeatBook(SHAPE, WANTED, 3.0)
    leases = all_ready(book, copies=2)
    book.report(leases["expert-0"], report("expert-0", "draining"), 0.0)
    assert book.missing() == ""


def test_a_half_loaded_shard_covers_only_what_it_holds() -> None:
    book = SeatBook(SHAPE, WANTED, 3.0)
    leases = all_ready(book)
    part = ExpertSet.from_pairs(SHARES[1].pairs()[:4], 4, 10)
    book.report(leases["expert-1"], report("expert-1", "ready", part), 0.0)
    assert book.missing() == "5 of 30 experts have no live replica"


def test_an_unknown_state_is_refused() -> None:
    book = SeatBook(SHAPE, WANTED, 3.0)
    with pytest.raises(FleetError, match="state: 'happy' is not one of starting, loading, ready"):
        book.report(take(book, "expert-0"), report("expert-0", "happy"), 0.0)


def test_gateways_come_and_go_without_a_fixed_number() -> None:
    book = SeatBook(SHAPE, WANTED, 3.0)
    take(book, "gateway-0")
    assert book.seats["gateway-0"].role == "gateway"
    book.expire(9.0)
    assert "gateway-0" not in book.seats


def test_a_lease_of_an_earlier_controller_is_nobodys() -> None:
    before, after = SeatBook(SHAPE, WANTED, 3.0, incarnation=1000), SeatBook(SHAPE, WANTED, 3.0, incarnation=1001)
    old = [take(before, f"expert-{i}", pid=10 + i) for i in range(3)]
    new = [take(after, f"expert-{i}", pid=10 + i) for i in (2, 0, 1)]
    assert not set(old) & set(new)
    assert not any(after.report(lease, report("expert-0", "ready"), 0.1) for lease in old)


def test_a_report_for_another_seat_is_not_taken() -> None:
    book = SeatBook(SHAPE, WANTED, 3.0)
    lease = take(book, "expert-0")
    assert not book.report(lease, report("expert-1", "ready"), 0.1)


def test_a_seat_that_nobody_wants_is_there_as_long_as_somebody_has_it() -> None:
    book = SeatBook(SHAPE, WANTED, 3.0)
    lease = take(book, "expert-2")
    book.want(WANTED.scaled("expert", 2))
    assert not book.seats["expert-2"].wanted
    assert book.report(lease, report("expert-2", "ready"), 0.1)
    book.expire(9.0)
    assert "expert-2" not in book.seats
    with pytest.raises(FleetError, match="'expert-2' does not exist"):
        take(book, "expert-2")


def test_who_holds_experts_of_an_earlier_controller_keeps_its_seat_without_being_wanted() -> None:
    book = SeatBook(SHAPE, WANTED, 3.0)
    asked = request("expert-5")
    asked.held.CopyFrom(SHARES[0].to_proto())
    book.register(asked, 0.0)
    assert book.wanted == WANTED
    assert not book.seats["expert-5"].wanted
    assert list(book.seats) == ["attention-0", "expert-0", "expert-1", "expert-2", "expert-5"]


def test_a_member_says_how_long_its_sequences_may_be() -> None:
    book = SeatBook(SHAPE, WANTED, 3.0)
    lease = take(book, "attention-0")
    assert book.seats["attention-0"].member().max_model_len == 0
    book.report(lease, pb.WorkerReport(seat="attention-0", state="ready", metrics={"max_model_len": 4096.0}), 0.0)
    assert book.seats["attention-0"].member().max_model_len == 4096


def test_shards_that_have_no_room_for_the_model_are_told_so_once_all_are_there() -> None:
    book = SeatBook(SHAPE, WANTED, 3.0)
    for index in range(2):
        book.register(request(f"expert-{index}", 7 + index, capacity=8), 0.0)
    assert "have room" not in book.missing()
    book.register(request("expert-2", 9, capacity=8), 0.0)
    assert (
        "30 of 30 experts have no live replica, and the 3 expert shards have room for 24: start more" in book.missing()
    )
    book.lose(book.seats["expert-2"])
    book.register(request("expert-2", 10, capacity=14), 0.0)
    assert "have room" not in book.missing()
