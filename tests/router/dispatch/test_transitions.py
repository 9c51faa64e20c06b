"""A dispatch walked through its tables: shards that answer in pieces, refuse, are slow or wrong, come and go, in any order."""

import itertools
import random
from collections.abc import Collection, Iterator
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from expertfleet.proto.codec import Result
from expertfleet.proto.errors import Code, FleetError
from expertfleet.proto.rows import Rows
from expertfleet.router.dispatch import layer_dispatch
from expertfleet.router.dispatch.combine import combine
from expertfleet.router.dispatch.counters import Counters
from expertfleet.router.dispatch.layer_dispatch import LayerDispatch
from expertfleet.router.dispatch.transitions import ON_FRAME, ON_LAYER, RETRYABLE, FrameEvent, LayerEvent, Phase
from expertfleet.router.lanes.frame_in_flight import FrameInFlight, FrameState

T, K, H, E, S = 3, 4, 8, 6, 4
REFUSALS = [*sorted(RETRYABLE), Code.EXPIRED, Code.BAD_FRAME]


class FakeLane:
    """Keeps what it was given; the walk says what becomes of it."""

    def __init__(self, number: int, rng: random.Random) -> None:
        self.seat = self.address = f"expert-{number}"
        self.number, self.quarantined = number, False
        self.pace = SimpleNamespace(limit_s=lambda num_routes: 0.0)
        self.posted: list[FrameInFlight] = []
        self.dropped: list[FrameInFlight] = []
        self.ignored: list[FrameInFlight] = []
        self.is_up = True
        self._rng = rng

    def post(self, frame: FrameInFlight) -> None:
        self.posted.append(frame)
        if not self.is_up or self._rng.random() < 0.03:  # refused at once
            assert frame.owner is not None
            frame.owner.on_answer(frame, FleetError(Code.LANE_LOST, "down"))

    def drop(self, frame: FrameInFlight) -> None:
        self.dropped.append(frame)
        frame.let_go()

    def ignore(self, frame: FrameInFlight) -> None:
        self.ignored.append(frame)

    def observe(self, num_experts: int, seconds: float, now: float) -> None:
        assert seconds >= 0

    def suspect(self) -> None:
        pass


class FakeTimers:
    def __init__(self) -> None:
        self.waiting: dict[object, float] = {}

    def end_at(self, waiting: object, at: float) -> None:
        self.waiting[waiting] = at

    def forget(self, waiting: object) -> None:
        self.waiting.pop(waiting, None)


class World:
    """A router of fake lanes; ``holders`` [S, E] may change while a dispatch is under way."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.lanes = [FakeLane(number, self.rng) for number in range(S)]
        share = self.rng.choice((0.3, 0.6, 1.0))
        self.holders = [[self.rng.random() < share for _ in range(E)] for _ in range(S)]
        # Shards whose answers for an expert are not finite: none, one, or all that hold it.
        self.wrong = {(self.rng.randrange(S), self.rng.randrange(E)) for _ in range(self.rng.choice((0, 0, 2, 8)))}
        self.counters, self.timings = Counters(), cast(Any, [])
        self.deadlines, self.hedge_timers = cast(Any, FakeTimers()), cast(Any, FakeTimers())
        self.layer_deadline_s = 60.0
        self.routing_table = cast(Any, SimpleNamespace(has_replicas=True, lacks=self.lacks))
        self.parked: list[LayerDispatch] = []
        self.num_forgotten = self.num_done = 0
        self.quarantined: list[FakeLane] = []
        self._ids = itertools.count(1)

    def lacks(self, layer: int, experts: torch.Tensor) -> bool:
        return any(not any(held[expert] for held in self.holders) for expert in experts.tolist())

    def build_frames(
        self, dispatch: LayerDispatch, routes: Any, avoid: Collection[str], *, is_recheck: bool = False
    ) -> tuple[Iterator[FrameInFlight], Any]:
        mine: dict[int, list[int]] = {}
        left: list[int] = []
        for route in routes.tolist():
            expert = int(dispatch.experts[route])
            able = [n for n in range(S) if self.holders[n][expert] and self.lanes[n].seat not in avoid]
            mine.setdefault(self.rng.choice(able), []).append(route) if able else left.append(route)
        return (self._frame(dispatch, n, one) for n, one in mine.items()), np.array(left, dtype=np.int64)

    def _frame(self, dispatch: LayerDispatch, number: int, routes: list[int]) -> FrameInFlight:
        self.counters.frames += 100  # so that hedges are never too many
        lane = cast(Any, self.lanes[number])
        frame = FrameInFlight(dispatch, lane, next(self._ids), np.array(routes, np.int64), dispatch.rows, T, 1)
        frame.wire = cast(Any, object())
        return frame

    def quarantine(self, dispatch: LayerDispatch, lanes: list[Any]) -> None:
        self.quarantined += lanes

    def park(self, dispatch: LayerDispatch, pause_s: float) -> None:
        self.parked.append(dispatch)

    def forget(self, dispatch: LayerDispatch) -> None:
        self.num_forgotten += 1

    # The walk.

    def live(self) -> list[FrameInFlight]:
        return [frame for lane in self.lanes for frame in lane.posted if frame.owner and not frame.state.is_over]

    def answer(self, dispatch: LayerDispatch, frame: FrameInFlight) -> None:
        number = cast(Any, frame.lane).number
        count = self.rng.randint(1, frame.num_routes - frame.num_answered)
        routes = frame.routes[frame.num_answered : frame.num_answered + count]
        rows = expected_rows(dispatch.rows.tensor, dispatch.experts, routes)
        for place, route in enumerate(routes.tolist()):
            if (number, int(dispatch.experts[route])) in self.wrong:
                rows[place] = float("nan")
        result = Result(frame.frame_id, frame.num_answered, frame.num_routes, Rows.of(rows))
        assert frame.take(result)
        assert frame.owner is not None
        frame.owner.on_answer(frame, result)

    def refuse(self, frame: FrameInFlight) -> None:
        code = self.rng.choice(REFUSALS if self.rng.random() < 0.3 else sorted(RETRYABLE))
        frame.failed = True
        if code is Code.EXPIRED and self.rng.random() < 0.7:
            frame.deadline -= 1.0  # the layer has more time than the shard was told
        assert frame.owner is not None
        frame.owner.on_answer(frame, FleetError(code, "drawn"))

    def step(self, dispatch: LayerDispatch) -> None:
        live, draw = self.live(), self.rng.random()
        if live and draw < 0.55:
            self.answer(dispatch, self.rng.choice(live))
        elif live and draw < 0.72:
            self.refuse(self.rng.choice(live))
        elif draw < 0.88:
            dispatch.hedge()
        elif draw < 0.94:
            number, expert = self.rng.randrange(S), self.rng.randrange(E)
            self.holders[number][expert] = not self.holders[number][expert]
            self.lanes[number].is_up = self.rng.random() < 0.9
        elif draw < 0.97 or self.rng.random() < 0.6:
            dispatch.retry_waiting()
        else:
            dispatch.expire()


def expected_rows(x: torch.Tensor, experts: Any, routes: Any) -> torch.Tensor:
    picked = torch.from_numpy(experts[routes].copy())
    return x[torch.from_numpy(routes // K)] * (picked + 1)[:, None].to(x.dtype)


def walk(seed: int) -> tuple[World, LayerDispatch]:
    world = World(seed)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-4, 5, (T, H), generator=generator).float()
    if seed % 29 == 0:
        x[0, 0] = float("nan")
    ids = torch.stack([torch.randperm(E, generator=generator)[:K] for _ in range(T)])
    weights = torch.rand(T, K, generator=generator)
    dispatch = LayerDispatch(cast(Any, world), 1, x, ids, weights, 0, world.rng.choice((0.0, 60.0)))

    def on_done() -> None:
        world.num_done += 1

    dispatch.when_done(on_done)
    dispatch.start(*world.build_frames(dispatch, np.arange(T * K), ()))
    for _ in range(world.rng.choice((5, 15, 400))):
        if dispatch.done:
            break
        world.step(dispatch)
    if seed % 2:
        settle(world, dispatch, seed)
    check(world, dispatch, x, ids, weights, seed)
    return world, dispatch


def settle(world: World, dispatch: LayerDispatch, seed: int) -> None:
    """Once every shard holds everything and answers, the dispatch ends."""
    world.holders = [[True] * E for _ in range(S)]
    for lane in world.lanes:
        lane.is_up, lane._rng = True, random.Random(7)
    for _ in range(200):
        if dispatch.done:
            return
        if live := world.live():
            world.answer(dispatch, live[0])
        else:
            dispatch.retry_waiting()
    raise AssertionError(f"seed {seed}: it waits for ever")


def check(world: World, dispatch: LayerDispatch, x: Any, ids: Any, weights: Any, seed: int) -> None:
    is_done = dispatch.done
    assert world.num_done == world.num_forgotten == is_done, seed
    if is_done and dispatch.error is None:
        rows = expected_rows(x, dispatch.experts, np.arange(T * K)).view(T, K, H)
        good = [row for row in range(T) if row not in dispatch.faults]
        assert torch.equal(dispatch.combined()[good], combine(rows, weights)[good]), seed
        assert torch.isfinite(dispatch.combined()).all(), seed
    dispatch.close()
    assert dispatch.done, seed
    assert world.num_done == world.num_forgotten == 1, "it ends once"
    assert not world.live(), seed
    posted = sorted(frame.frame_id for lane in world.lanes for frame in lane.posted)
    dropped = [frame.frame_id for lane in world.lanes for frame in lane.dropped]
    assert len(set(dropped)) == len(dropped), f"seed {seed}: memory given back twice"
    assert set(posted) <= set(dropped), f"seed {seed}: memory never given back"
    for frame in (frame for lane in world.lanes for frame in lane.posted):
        assert frame.num_taken <= frame.num_routes, seed


class Recording(dict[Any, Any]):
    """A table that knows which of its rows were looked up."""

    def __init__(self, rows: dict[Any, Any]) -> None:
        super().__init__(rows)
        self.reached: set[Any] = set()

    def get(self, key: Any, default: Any = None) -> Any:
        self.reached.add(key)
        return super().get(key, default)


def test_every_walk_ends_once_with_every_route_or_one_error_and_every_row_is_reached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frames, layers = Recording(ON_FRAME), Recording(ON_LAYER)
    monkeypatch.setattr(layer_dispatch, "ON_FRAME", frames)
    monkeypatch.setattr(layer_dispatch, "ON_LAYER", layers)
    for seed in range(3000):
        walk(seed)
    assert frames.reached == set(ON_FRAME)
    assert layers.reached == set(ON_LAYER)


def test_no_row_leaves_a_state_that_is_over() -> None:
    assert not [state for state, _ in ON_FRAME if state.is_over]
    assert not [phase for phase, _ in ON_LAYER if phase is Phase.DONE]


@pytest.mark.parametrize("state", [FrameState.SENT, FrameState.SLOW, FrameState.HEDGE, FrameState.RECHECK])
def test_every_answer_and_every_error_has_a_row_while_a_frame_lives(state: FrameState) -> None:
    from_shards = (
        FrameEvent.ANSWER,
        FrameEvent.LAST_ANSWER,
        FrameEvent.REFUSED,
        FrameEvent.OUT_OF_TIME,
        FrameEvent.FATAL,
    )
    assert all((state, event) in ON_FRAME for event in from_shards)


def test_an_event_without_a_row_names_state_and_event() -> None:
    world, dispatch = walk(3)
    frame = world.lanes[0]
    made = FrameInFlight(dispatch, cast(Any, frame), 10**6, np.arange(1), Rows.of(torch.zeros(T, H)), T, 1)
    with pytest.raises(RuntimeError, match="a frame is SENT and REPLACED came"):
        dispatch._change(made, FrameEvent.REPLACED)
    with pytest.raises(RuntimeError, match="the layer is DONE and DEADLINE came"):
        dispatch._follow(LayerEvent.DEADLINE)
