"""The engine batches, frees, fails and stops as it should; the forward pass here is a few lines of arithmetic."""

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from types import SimpleNamespace

import pytest
import torch

from expertfleet.attention_workers.engine import Engine
from expertfleet.attention_workers.kv_cache import PageAllocator
from expertfleet.attention_workers.prefill_budget import PrefillBudget
from expertfleet.attention_workers.scheduler import Chunk, Scheduler
from expertfleet.attention_workers.sequence import SamplingParams, Sequence, Update
from expertfleet.proto.errors import Code, FleetError

VOCAB = 50


class Gate:
    """Stands for a dispatch: done when the test opens it, or at once."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.calls: list[Callable[[], None]] = []

    def __await__(self) -> Generator["Gate", None, None]:
        yield self

    def when_done(self, call: Callable[[], None]) -> None:
        threading.Thread(target=lambda: (self.open.wait(20), call()), daemon=True).start()


class Fleet:
    """An engine whose next token is the last one plus one."""

    def __init__(self, micro_batches: int = 1) -> None:
        self.pages = PageAllocator(32)
        self.gates: queue.SimpleQueue[Gate] = queue.SimpleQueue()
        self.hold = False
        self.error: FleetError | None = None
        self.faults: dict[int, FleetError] = {}  # by last token
        self.engine = Engine(Scheduler(self.pages, 32, 512), self.forward, PrefillBudget(0.1, 512), micro_batches, 1)
        self.engine.start()

    async def forward(self, chunks: list[Chunk]) -> torch.Tensor:
        if self.hold:
            gate = Gate()
            self.gates.put(gate)
            await gate
        if self.error is not None:
            raise self.error
        for chunk in chunks:
            chunk.sequence.fault = self.faults.get(chunk.sequence.tokens[-1])
        rows = [chunk.sequence.tokens[-1] + 1 for chunk in chunks if chunk.samples]
        return torch.nn.functional.one_hot(torch.tensor(rows, dtype=torch.int64) % VOCAB, VOCAB).float() * 50

    def submit(
        self, start: int, max_tokens: int = 5, prompt: int = 1, **more: object
    ) -> tuple[Sequence, "queue.Queue[Update]"]:
        updates: queue.Queue[Update] = queue.Queue()
        params = SamplingParams(temperature=0.0)
        sequence = Sequence("r", [start] * prompt, prompt, max_tokens, params, updates.put, **more)
        self.engine.add(sequence)
        return sequence, updates


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    fleet = Fleet()
    yield fleet
    fleet.hold = False
    while not fleet.gates.empty():
        fleet.gates.get().open.set()
    fleet.engine.stop()


def drain(updates: "queue.Queue[Update]") -> tuple[list[int], str | FleetError]:
    ids: list[int] = []
    while True:
        update = updates.get(timeout=10)
        if isinstance(update, FleetError):
            return ids, update
        ids += [token.token_id for token in update[0]]
        if update[1]:
            return ids, update[1]


def test_a_sequence_runs_to_its_length(fleet: Fleet) -> None:
    _, updates = fleet.submit(10)
    assert drain(updates) == ([11, 12, 13, 14, 15], "length")
    assert fleet.pages.num_free == 32


def test_many_sequences_run_in_one_step(fleet: Fleet) -> None:
    fleet.hold = True
    waiting = [fleet.submit(n)[1] for n in range(10)]
    gate = fleet.gates.get(timeout=10)
    while fleet.engine.num_sequences < 10:
        time.sleep(0.01)
        if fleet.engine.num_sequences == 1:
            gate.open.set()
            gate = fleet.gates.get(timeout=10)
    fleet.hold = False
    gate.open.set()
    for number, updates in enumerate(waiting):
        assert drain(updates)[0] == list(range(number + 1, number + 6))
    assert fleet.engine.counters.max_sequences_in_step >= 9


def test_cancelling_in_flight_frees_when_the_step_lands(fleet: Fleet) -> None:
    fleet.hold = True
    sequence, _ = fleet.submit(3, 1000)
    gate = fleet.gates.get(timeout=10)
    fleet.engine.cancel(sequence)
    fleet.hold = False
    gate.open.set()
    deadline = time.monotonic() + 10
    while fleet.pages.num_free < 32 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert fleet.pages.num_free == 32
    assert fleet.engine.num_sequences == 0


def test_a_failed_step_fails_its_sequences_and_the_engine_lives(fleet: Fleet) -> None:
    fleet.error = FleetError(Code.NO_REPLICA, "gone")
    _, updates = fleet.submit(3)
    assert drain(updates) == ([], fleet.error)
    fleet.error = None
    _, updates = fleet.submit(3)
    assert drain(updates)[1] == "length"


def test_a_row_without_an_output_ends_its_sequence_alone(fleet: Fleet) -> None:
    fleet.hold = True
    fleet.faults = {32: FleetError(Code.NON_FINITE, "infinite")}
    _, first = fleet.submit(10)
    gate = fleet.gates.get(timeout=10)
    others = [fleet.submit(start)[1] for start in (30, 20)]
    fleet.hold = False
    gate.open.set()
    assert drain(others[0]) == ([31, 32], fleet.faults[32])
    assert drain(others[1]) == ([21, 22, 23, 24, 25], "length")
    assert drain(first) == ([11, 12, 13, 14, 15], "length")
    assert fleet.pages.num_free == 32
    assert fleet.engine.counters.failed_sequences == 1


def test_a_bug_in_a_step_is_answered_as_internal(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    fleet.error = ZeroDivisionError("oops")  # type: ignore[assignment]
    _, updates = fleet.submit(3)
    error = drain(updates)[1]
    assert isinstance(error, FleetError)
    assert error.code is Code.INTERNAL


def test_a_passed_deadline_ends_the_sequence(fleet: Fleet) -> None:
    _, updates = fleet.submit(3, 10**6, deadline=time.monotonic() + 0.2)
    error = drain(updates)[1]
    assert isinstance(error, FleetError)
    assert error.code is Code.DEADLINE


def test_a_long_prompt_is_read_in_small_chunks_while_an_answer_is_under_way(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[list[int]] = []
    now = 0.0

    async def forward(chunks: list[Chunk]) -> torch.Tensor:
        nonlocal now
        taken.append([chunk.count for chunk in chunks])
        now += 0.002 * sum(taken[-1])
        return await fleet.forward(chunks)

    monkeypatch.setattr(fleet.engine, "_forward", forward)
    monkeypatch.setattr("expertfleet.attention_workers.engine.time", SimpleNamespace(monotonic=lambda: now))
    fleet.hold = True
    _, first = fleet.submit(10, 150)
    gate = fleet.gates.get(timeout=10)
    _, second = fleet.submit(20, 1, prompt=2000)
    fleet.hold = False
    gate.open.set()
    assert drain(second) == ([21], "length")
    assert len(drain(first)[0]) == 150
    with_prompt = [counts for counts in taken if len(counts) == 2]
    assert [counts[0] for counts in with_prompt] == [1] * len(with_prompt)
    assert with_prompt[0][1] > 400
    assert all(30 < counts[1] < 60 for counts in with_prompt[10:-1])  # 0.1 s is 50 tokens


def test_two_micro_batches_fly_at_once() -> None:
    fleet = Fleet(micro_batches=2)
    fleet.hold = True
    _, first = fleet.submit(1)
    gates = [fleet.gates.get(timeout=10)]
    _, second = fleet.submit(20)
    gates.append(fleet.gates.get(timeout=10))
    fleet.hold = False
    gates[1].open.set()
    assert drain(second)[0] == [21, 22, 23, 24, 25]
    gates[0].open.set()
    assert drain(first)[0] == [2, 3, 4, 5, 6]
    fleet.engine.stop()


def test_stopping_answers_whoever_is_left() -> None:
    fleet = Fleet()
    _, updates = fleet.submit(1, 10**6)
    updates.get(timeout=10)
    fleet.engine.stop()
    error = drain(updates)[1]
    assert isinstance(error, FleetError)
    assert error.code is Code.DRAINING


def test_a_bug_in_sampling_fails_one_sequence_and_the_engine_lives(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("expertfleet.attention_workers.engine.sample", lambda logits, sequence: 1 / 0)
        _, updates = fleet.submit(3)
        error = drain(updates)[1]
    assert isinstance(error, FleetError)
    assert error.code is Code.INTERNAL
    _, updates = fleet.submit(3)
    assert drain(updates)[1] == "length"
    assert fleet.pages.num_free == 32
