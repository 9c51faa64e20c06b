"""Dispatches through real streams: every row comes back, failures move elsewhere, and nothing is answered in part."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import fake_shard
import numpy as np
import pytest
import torch

from expertfleet.membership.epoch import Epoch, EpochId, ExpertSet, Member
from expertfleet.proto.codec import Hello
from expertfleet.proto.errors import Code, FleetError
from expertfleet.router.dispatch.combine import combine
from expertfleet.router.dispatch.layer_dispatch import LayerDispatch
from expertfleet.router.lanes.frame_in_flight import FrameInFlight
from expertfleet.router.lanes.lane import Lane
from expertfleet.router.placement.expert_loads import ExpertLoads
from expertfleet.router.router import Router
from expertfleet.transport.io_thread import IoThread
from expertfleet.transport.reactor import Reactor

E, L, H, K = 24, 3, 32, 8
FINGERPRINT = "ab" * 32


class Fleet:
    """A router and fake shards on one IO thread."""

    def __init__(self, deadline_s: float = 10.0, wait_s: float = 0.0) -> None:
        self.io = IoThread("test-io")
        self.reactor = Reactor()
        hello = Hello("attention-0", FINGERPRINT, "bfloat16", fake_shard.LIMIT)
        loads = ExpertLoads(L, E, half_life_s=60.0)
        self.router = Router(self.io, self.reactor, hello, deadline_s, wait_s, loads=loads)
        self.shards: list = []
        self.counter = 0

    def add_shards(self, count: int) -> None:
        for _ in range(count):
            shard = self.io.submit(self._make(f"expert-{len(self.shards)}"))
            self.shards.append(shard)

    async def _make(self, seat: str):
        shard = fake_shard.FakeShard(seat)
        await shard.start()
        return shard

    def commit(self, holders: Callable[[int, int], list[int]]) -> None:
        """``holders(layer, expert)`` are the shard numbers that hold it."""
        masks = [np.zeros((L, E), dtype=bool) for _ in self.shards]
        for layer in range(1, L):
            for expert in range(E):
                for number in holders(layer, expert):
                    masks[number][layer, expert] = True
        members = tuple(
            Member(shard.seat, shard.address, "fake", ExpertSet.from_mask(mask))
            for shard, mask in zip(self.shards, masks, strict=True)
        )
        self.counter += 1
        self.router.set_epoch(Epoch(EpochId(1, self.counter), FINGERPRINT, "bfloat16", members, (), True))
        self.run(0)

    def run(self, seconds: float) -> None:
        """What the engine's thread does while it waits."""
        self.reactor.step(0)
        self.reactor.run(lambda: False, seconds)

    def wait_usable(self) -> bool:
        return self.reactor.run(lambda: self.router.usable, 10)

    def wait_all_up(self) -> bool:
        """Replicas make the router usable before every lane is up."""
        return self.reactor.run(lambda: all(lane.up for lane in self.router._lanes.values()), 10)

    def outcome(self, dispatch: LayerDispatch, timeout_s: float = 15.0) -> torch.Tensor:
        assert self.reactor.run(lambda: dispatch.done, timeout_s), "the dispatch never ended"
        with closing(dispatch):
            if dispatch.error is not None:
                raise dispatch.error
            return dispatch.combined()

    def ask(self, T: int = 5, layer: int = 1) -> tuple[LayerDispatch, torch.Tensor]:
        """A random dispatch and the output that it must give."""
        x = torch.randn(T, H).bfloat16()
        ids = torch.stack([torch.randperm(E)[:K] for _ in range(T)])
        weights = torch.rand(T, K)
        rows = fake_shard.expected_rows(x.repeat_interleave(K, 0), ids.reshape(-1))
        expected = combine(rows.view(T, K, H), weights)
        return self.router.dispatch(layer, x, ids, weights), expected

    def close(self) -> None:
        self.router.close()
        assert not self.router.deadlines
        for shard in self.shards:
            self.io.submit(shard.stop())
        self.io.stop()


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    fleet = Fleet()
    yield fleet
    fleet.close()


@pytest.mark.parametrize("num_shards", [1, 2, 5])
def test_any_number_of_shards_gives_the_same_bits(fleet: Fleet, num_shards: int) -> None:
    fleet.add_shards(num_shards)
    fleet.commit(lambda layer, expert: [expert % num_shards])
    assert fleet.wait_usable()
    for T in (1, 2, 40):
        dispatch, expected = fleet.ask(T)
        assert torch.equal(fleet.outcome(dispatch), expected)


def test_each_row_travels_once_to_a_shard(fleet: Fleet) -> None:
    fleet.add_shards(2)
    fleet.commit(lambda layer, expert: [expert % 2])
    assert fleet.wait_usable()
    dispatch, _ = fleet.ask(6)
    fleet.outcome(dispatch)
    for shard in fleet.shards:
        (frame,) = shard.frames
        assert frame.rows.count <= 6
        assert frame.route_experts.tolist() == sorted(frame.route_experts.tolist())


def test_what_is_asked_is_counted(fleet: Fleet) -> None:
    fleet.add_shards(1)
    fleet.commit(lambda layer, expert: [0])
    assert fleet.wait_usable()
    fleet.router.loads.snapshot(0.0)
    dispatches = [fleet.ask(T)[0] for T in (6, 2)]
    for dispatch in dispatches:
        fleet.outcome(dispatch)
    seen = fleet.router.loads.snapshot(1.0)
    asked = np.bincount(np.concatenate([dispatch.experts for dispatch in dispatches]), minlength=E)
    assert np.allclose(seen.routes[1] / seen.routes[1].sum(), asked / asked.sum())
    assert np.array_equal(seen.activations[1] > 0, asked > 0)
    assert not seen.routes[[0, 2]].any()


def test_pieces_are_put_together(fleet: Fleet) -> None:
    fleet.add_shards(2)
    fleet.commit(lambda layer, expert: [expert % 2])
    for shard in fleet.shards:
        shard.piece_routes = 3
    assert fleet.wait_usable()
    dispatch, expected = fleet.ask(20)
    assert torch.equal(fleet.outcome(dispatch), expected)


@pytest.mark.parametrize("code", [Code.NOT_HELD, Code.STALE_EPOCH, Code.DRAINING, Code.OVERLOADED])
def test_a_refusing_shard_is_replaced_by_its_replica(fleet: Fleet, code: Code) -> None:
    fleet.add_shards(2)
    fleet.commit(lambda layer, expert: [0, 1])
    assert fleet.wait_usable()
    fleet.shards[0].refuse = FleetError(code, "no")
    dispatch, expected = fleet.ask(9)
    assert torch.equal(fleet.outcome(dispatch), expected)


def test_a_lane_cut_after_a_piece_keeps_the_piece(fleet: Fleet) -> None:
    fleet.add_shards(2)
    fleet.commit(lambda layer, expert: [0, 1])
    assert fleet.wait_usable()
    assert fleet.wait_all_up()
    fleet.shards[0].piece_routes = 2
    fleet.shards[0].break_after_piece = True
    # Which replica is asked is the router's choice; the broken one must have been.
    while not fleet.shards[0].frames:
        dispatch, expected = fleet.ask(9)
        assert torch.equal(fleet.outcome(dispatch), expected)
    first, retried = fleet.shards[0].frames[0], fleet.shards[1].frames[-1]
    assert retried.frame_id > first.frame_id
    assert retried.route_rows.shape[0] == first.route_rows.shape[0] - 2


def test_without_a_replica_the_step_waits_for_an_epoch(fleet: Fleet) -> None:
    fleet.add_shards(2)
    fleet.commit(lambda layer, expert: [expert % 2])
    assert fleet.wait_usable()
    fleet.io.submit(fleet.shards[1].stop())
    dispatch, expected = fleet.ask(9)
    fleet.run(0.3)
    assert not dispatch.done
    fleet.commit(lambda layer, expert: [0])
    assert torch.equal(fleet.outcome(dispatch), expected)


def test_a_shard_that_returns_is_asked_again(fleet: Fleet) -> None:
    fleet.add_shards(1)
    fleet.commit(lambda layer, expert: [0])
    assert fleet.wait_usable()
    port = int(fleet.shards[0].address.rpartition(":")[2])
    fleet.io.submit(fleet.shards[0].stop())
    dispatch, expected = fleet.ask(4)
    fleet.run(0.2)
    fleet.io.submit(fleet.shards[0].start(port))
    assert torch.equal(fleet.outcome(dispatch), expected)


def test_past_the_deadline_the_dispatch_ends_and_cancels() -> None:
    fleet = Fleet(deadline_s=0.3)
    fleet.add_shards(1)
    fleet.commit(lambda layer, expert: [0])
    assert fleet.wait_usable()
    fleet.shards[0].pause.clear()
    dispatch, _ = fleet.ask()
    with pytest.raises(FleetError, match="no answer from expert-0") as caught:
        fleet.outcome(dispatch)
    assert caught.value.code is Code.DEADLINE
    fleet.io.post(fleet.shards[0].pause.set)
    assert fleet.reactor.run(lambda: bool(fleet.shards[0].cancelled), 5)
    fleet.close()


def test_nobody_holding_an_expert_is_named() -> None:
    fleet = Fleet(deadline_s=0.2)
    fleet.add_shards(1)
    fleet.commit(lambda layer, expert: [0] if expert else [])
    dispatch = fleet.router.dispatch(1, torch.zeros(1, H).bfloat16(), torch.arange(K).view(1, K), torch.ones(1, K))
    with pytest.raises(FleetError, match=r"no usable shard holds experts \[0") as caught:
        fleet.outcome(dispatch)
    assert caught.value.code is Code.NO_REPLICA
    fleet.close()


def test_an_expert_that_nobody_holds_is_waited_for_beyond_the_layers_deadline() -> None:
    fleet = Fleet(deadline_s=0.3, wait_s=20.0)
    fleet.add_shards(2)
    fleet.commit(lambda layer, expert: [expert % 2])
    assert fleet.wait_usable()
    fleet.io.submit(fleet.shards[1].stop())
    dispatch, expected = fleet.ask(9)
    fleet.run(1.5)
    assert not dispatch.done
    assert fleet.router.num_waiting == 1
    sent_before = len(fleet.shards[0].frames)
    fleet.commit(lambda layer, expert: [0])
    assert torch.equal(fleet.outcome(dispatch), expected)
    assert fleet.router.num_waiting == 0
    assert len(fleet.shards[0].frames) == sent_before + 1
    fleet.close()


def test_the_wait_for_an_expert_has_an_end() -> None:
    fleet = Fleet(deadline_s=0.2, wait_s=0.5)
    fleet.add_shards(1)
    fleet.commit(lambda layer, expert: [0] if expert else [])
    dispatch = fleet.router.dispatch(1, torch.zeros(1, H).bfloat16(), torch.arange(K).view(1, K), torch.ones(1, K))
    fleet.run(0.4)
    assert not dispatch.done
    with pytest.raises(FleetError, match=r"no usable shard holds experts \[0"):
        fleet.outcome(dispatch, 5.0)
    fleet.close()


@pytest.mark.parametrize("num_answered", [0, 3])
def test_a_part_whose_time_is_over_is_asked_again_with_the_time_that_the_layer_has_been_given_since(
    num_answered: int,
) -> None:
    fleet = Fleet(deadline_s=10.0, wait_s=20.0)
    fleet.add_shards(2)
    fleet.commit(lambda layer, expert: [expert % 2])
    assert fleet.wait_usable()
    slow, lost = fleet.shards
    slow.pause.clear()
    fleet.io.submit(lost.stop())
    dispatch, expected = fleet.ask(9)
    assert fleet.reactor.run(lambda: dispatch.waits_for_experts, 10)
    first_ends_at = dispatch.deadline
    fleet.run(0.2)
    fleet.commit(lambda layer, expert: [0])
    assert fleet.reactor.run(lambda: not dispatch.waits_for_experts, 10)
    assert dispatch.deadline > first_ends_at
    slow.expire_first(num_answered)
    fleet.io.post(slow.pause.set)
    assert torch.equal(fleet.outcome(dispatch), expected)
    first, *_, again = slow.frames
    assert len(slow.frames) == 3, "of the slow one's own, of the lost one's, and again"
    assert len(again.route_rows) == len(first.route_rows) - num_answered
    assert set(again.route_experts.tolist()) <= set(first.route_experts.tolist())
    assert again.timeout_us / 1e6 > first_ends_at - time.monotonic(), "more than was left of the old time"
    fleet.close()


def test_a_part_whose_time_is_over_ends_a_layer_that_was_given_no_more(fleet: Fleet) -> None:
    fleet.add_shards(2)
    fleet.commit(lambda layer, expert: [0, 1])
    assert fleet.wait_usable()
    for shard in fleet.shards:
        shard.refuse = FleetError(Code.EXPIRED, "the time was over")
    with pytest.raises(FleetError, match="the time was over") as caught:
        fleet.outcome(fleet.ask()[0])
    assert caught.value.code is Code.EXPIRED
    assert sum(len(shard.frames) for shard in fleet.shards) <= 2


def test_a_slow_part_whose_time_is_over_leaves_its_work_to_the_replica_that_was_asked_as_well(fleet: Fleet) -> None:
    fleet.add_shards(2)
    fleet.commit(lambda layer, expert: [0, 1])
    assert fleet.wait_all_up()
    warm(fleet)
    dispatch, expected = stalled(fleet, 0)
    fleet.shards[1].pause.clear()
    assert fleet.reactor.run(lambda: fleet.router.counters.hedged_frames >= 1, 5)
    dispatch.deadline += 60.0  # as if it had been renewed
    fleet.shards[0].expire_first(0)
    fleet.io.post(fleet.shards[0].pause.set)
    fleet.run(0.2)
    assert not dispatch.done
    num_asked = [len(shard.frames) for shard in fleet.shards]
    fleet.io.post(fleet.shards[1].pause.set)
    assert torch.equal(fleet.outcome(dispatch, 5.0), expected)
    assert [len(shard.frames) for shard in fleet.shards] == num_asked, "nobody was asked a third time"


@pytest.mark.parametrize("refuses", [True, False])
def test_a_holder_that_refuses_or_is_silent_is_not_waited_for_any_longer(refuses: bool) -> None:
    fleet = Fleet(deadline_s=0.3, wait_s=60.0)
    fleet.add_shards(1)
    fleet.commit(lambda layer, expert: [0])
    assert fleet.wait_usable()
    if refuses:
        fleet.shards[0].refuse = FleetError(Code.INTERNAL, "broken")
    else:
        fleet.shards[0].pause.clear()
    with pytest.raises(FleetError):
        fleet.outcome(fleet.ask()[0], 5.0)
    fleet.io.post(fleet.shards[0].pause.set)
    fleet.close()


def test_bad_requests_are_not_retried(fleet: Fleet) -> None:
    fleet.add_shards(2)
    fleet.commit(lambda layer, expert: [0, 1])
    assert fleet.wait_usable()
    for shard in fleet.shards:
        shard.refuse = FleetError(Code.BAD_FRAME, "odd")
    dispatch, _ = fleet.ask(1)
    with pytest.raises(FleetError, match="odd") as caught:
        fleet.outcome(dispatch)
    assert caught.value.code is Code.BAD_FRAME


def warm(fleet: Fleet, T: int = 9) -> None:
    """Until it is known how long both shards take."""
    while min(len(shard.frames) for shard in fleet.shards) < 60:
        dispatch, expected = fleet.ask(T)
        assert torch.equal(fleet.outcome(dispatch), expected)


def lane_of(fleet: Fleet, number: int) -> Lane:
    return fleet.router._lanes[fleet.shards[number].seat, fleet.shards[number].address]


def stalled(fleet: Fleet, number: int, T: int = 9) -> tuple[LayerDispatch, torch.Tensor]:
    """A dispatch that shard ``number``, which does not answer, was asked about."""
    fleet.shards[number].pause.clear()
    before = len(fleet.shards[number].frames)
    dispatch, expected = fleet.ask(T)
    assert fleet.reactor.run(lambda: len(fleet.shards[number].frames) > before, 5)
    return dispatch, expected


def test_what_a_silent_shard_was_asked_is_asked_of_its_replica_and_it_is_left_alone_for_a_while(fleet: Fleet) -> None:
    fleet.add_shards(2)
    fleet.commit(lambda layer, expert: [0, 1])
    assert fleet.wait_all_up()
    warm(fleet)
    before = fleet.router.seconds_per_expert()
    assert before.keys() == {shard.address for shard in fleet.shards}
    dispatch, expected = stalled(fleet, 0)
    assert torch.equal(fleet.outcome(dispatch, 2.0), expected)
    assert fleet.router.counters.hedged_frames == 1
    assert fleet.router.seconds_per_expert()[fleet.shards[0].address] > before[fleet.shards[0].address] > 0
    asked = len(fleet.shards[0].frames)
    for _ in range(5):
        dispatch, expected = fleet.ask(9)
        assert torch.equal(fleet.outcome(dispatch, 1.0), expected)
    assert len(fleet.shards[0].frames) == asked
    fleet.io.post(fleet.shards[0].pause.set)
    assert fleet.reactor.run(lambda: not any(lane.suspected for lane in fleet.router._lanes.values()), 5)
    while len(fleet.shards[0].frames) == asked:
        dispatch, expected = fleet.ask(9)
        assert torch.equal(fleet.outcome(dispatch), expected)


def test_a_slow_shard_that_answers_before_its_replica_is_taken(fleet: Fleet) -> None:
    fleet.add_shards(2)
    fleet.commit(lambda layer, expert: [0, 1])
    assert fleet.wait_all_up()
    warm(fleet)
    dispatch, expected = stalled(fleet, 0)
    fleet.shards[1].pause.clear()
    assert fleet.reactor.run(lambda: fleet.router.counters.hedged_frames >= 1, 5)
    fleet.io.post(fleet.shards[0].pause.set)
    assert torch.equal(fleet.outcome(dispatch, 5.0), expected)
    fleet.io.post(fleet.shards[1].pause.set)
    assert fleet.reactor.run(lambda: bool(fleet.shards[1].cancelled), 5)


def test_a_replica_that_refuses_leaves_the_slow_shard_its_work(fleet: Fleet) -> None:
    fleet.add_shards(2)
    fleet.commit(lambda layer, expert: [0, 1])
    assert fleet.wait_all_up()
    warm(fleet)
    dispatch, expected = stalled(fleet, 0)
    fleet.shards[1].refuse = FleetError(Code.OVERLOADED, "no")
    fleet.run(1.0)
    assert not dispatch.done
    fleet.io.post(fleet.shards[0].pause.set)
    assert torch.equal(fleet.outcome(dispatch, 5.0), expected)


def test_a_slow_shard_that_dies_leaves_its_work_to_the_replica_already_asked(fleet: Fleet) -> None:
    fleet.add_shards(2)
    fleet.commit(lambda layer, expert: [0, 1])
    assert fleet.wait_all_up()
    warm(fleet)
    dispatch, expected = stalled(fleet, 0)
    fleet.shards[1].pause.clear()
    assert fleet.reactor.run(lambda: fleet.router.counters.hedged_frames >= 1, 5)
    fleet.io.submit(fleet.shards[0].stop())
    fleet.run(0.3)
    fleet.io.post(fleet.shards[1].pause.set)
    assert torch.equal(fleet.outcome(dispatch, 5.0), expected)


def test_a_replica_is_not_asked_after_another_that_was_to_share_the_work_has_refused(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.add_shards(3)
    fleet.commit(lambda layer, expert: [0, 1 + expert % 2])
    assert fleet.wait_all_up()
    warm(fleet)
    dispatch, expected = stalled(fleet, 0)
    replicas = [lane_of(fleet, 1), lane_of(fleet, 2)]
    theirs = [sent for lane in replicas for sent in lane._frames.open.values()]
    assert fleet.reactor.run(lambda: not any(sent.num_left for sent in theirs), 5), "they answer what they were asked"
    asked: list[FrameInFlight] = []

    def refuse(frame: FrameInFlight) -> None:
        asked.append(frame)
        assert frame.owner is not None
        frame.owner.on_answer(frame, FleetError(Code.OVERLOADED, "no room for the rows"))

    for lane in replicas:
        monkeypatch.setattr(lane, "post", refuse)
    assert fleet.reactor.run(lambda: bool(asked), 5)
    fleet.run(0.1)
    assert len(asked) == 1, "the other would answer, and keep the memory, for nobody"
    fleet.io.post(fleet.shards[0].pause.set)
    assert torch.equal(fleet.outcome(dispatch, 5.0), expected)


def test_whoever_will_take_longest_is_asked_first(fleet: Fleet) -> None:
    fleet.add_shards(3)
    fleet.commit(lambda layer, expert: [expert % 3])
    assert fleet.wait_usable()
    for _ in range(5):
        dispatch, expected = fleet.ask(1)
        asked = [part.num_experts for part in dispatch._frames.values()]
        assert asked == sorted(asked, reverse=True), "by numbers of experts, as nothing is known"
        dispatch.close()
    for number, seconds in enumerate((0.001, 1.0, 0.03)):
        lane_of(fleet, number).observe(1, seconds, 0.0)
    dispatch, expected = fleet.ask(2)
    assert [part.lane.seat for part in dispatch._frames.values()] == ["expert-1", "expert-2", "expert-0"]
    assert torch.equal(fleet.outcome(dispatch), expected)


def test_few_parts_are_asked_twice(fleet: Fleet) -> None:
    """Where everybody is slow, asking others helps nobody."""
    fleet.add_shards(2)
    fleet.commit(lambda layer, expert: [0, 1])
    assert fleet.wait_all_up()
    warm(fleet)
    for shard in fleet.shards:
        shard.pause.clear()
    dispatches = [fleet.ask(9) for _ in range(60)]
    fleet.run(3.0)
    frames = fleet.router.counters.frames
    assert 0 < fleet.router.counters.hedged_frames <= 8 + 0.05 * frames
    for shard in fleet.shards:
        fleet.io.post(shard.pause.set)
    for dispatch, expected in dispatches:
        assert torch.equal(fleet.outcome(dispatch), expected)


@pytest.mark.parametrize("code", [Code.OVERLOADED, Code.INTERNAL, Code.STALE_EPOCH])
def test_a_passing_refusal_of_the_only_holder_is_asked_again(fleet: Fleet, code: Code) -> None:
    fleet.add_shards(1)
    fleet.commit(lambda layer, expert: [0])
    assert fleet.wait_usable()
    fleet.shards[0].refuse = FleetError(code, "not now")
    dispatch, expected = fleet.ask(4)
    fleet.run(0.2)
    assert not dispatch.done
    fleet.shards[0].refuse = None
    assert torch.equal(fleet.outcome(dispatch, 3), expected)
    assert not fleet.router._parked
    assert not fleet.router.deadlines


def test_past_the_deadline_the_last_refusal_is_named() -> None:
    fleet = Fleet(deadline_s=0.3)
    fleet.add_shards(1)
    fleet.commit(lambda layer, expert: [0])
    assert fleet.wait_usable()
    fleet.shards[0].refuse = FleetError(Code.OVERLOADED, "queue is full")
    with pytest.raises(FleetError, match="last refusal: OVERLOADED expert-0: queue is full"):
        fleet.outcome(fleet.ask()[0])
    fleet.close()


def test_rows_beyond_the_shards_frame_limit_travel_in_several_frames(fleet: Fleet) -> None:
    fleet.add_shards(2)
    fleet.commit(lambda layer, expert: [expert % 2])
    assert fleet.wait_usable()
    limit = 2048
    for lane in fleet.router._lanes.values():
        lane.limits = dataclasses.replace(lane.limits, max_frame_bytes=limit)
    dispatch, expected = fleet.ask(60)
    assert torch.equal(fleet.outcome(dispatch), expected)
    for shard in fleet.shards:
        assert len(shard.frames) > 1
        for frame in shard.frames:
            assert frame.rows.nbytes + frame.route_rows.nbytes + frame.route_experts.nbytes + 64 <= limit


def test_the_frame_limit_is_the_one_the_shard_greets_with(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_shard, "LIMIT", 1 << 20)
    fleet.add_shards(1)
    fleet.commit(lambda layer, expert: [0])
    assert fleet.wait_usable()
    assert [lane.limits.max_frame_bytes for lane in fleet.router._lanes.values()] == [1 << 20]
