"""Requests are checked whole, and a call ends by its deadline whatever the engine does."""

import asyncio
import dataclasses
from collections.abc import Callable

import pytest

from expertfleet.attention_workers.sequence import Sequence, ThinkingBudget, TokenOut
from expertfleet.attention_workers.service import GenerateService, Limits, check_request, make_sequence
from expertfleet.proto.admission import ADMITTED
from expertfleet.proto.errors import Code, FleetError
from expertfleet.proto.generated import generate_pb2 as pb

LIMITS = Limits(vocab_size=100, max_model_len=64)


class FakeEngine:
    """Keeps what it is given; ``serve`` runs at once for every sequence."""

    def __init__(self) -> None:
        self.added: list[Sequence] = []
        self.cancelled: list[Sequence] = []
        self.serve: Callable[[Sequence], None] = lambda sequence: None

    def add(self, sequence: Sequence) -> None:
        self.added.append(sequence)
        self.serve(sequence)

    def cancel(self, sequence: Sequence) -> None:
        self.cancelled.append(sequence)


class Aborted(Exception):
    pass


class Context:
    """What a call's context is asked for."""

    def __init__(self) -> None:
        self.metadata: tuple[tuple[str, str], ...] = ()

    async def send_initial_metadata(self, metadata: tuple[tuple[str, str], ...]) -> None:
        self.metadata = metadata

    async def abort(self, status: object, details: str, trailing: object) -> None:
        raise Aborted(details)


class Worker:
    def __init__(self, max_open: int | None = None) -> None:
        self.engine = FakeEngine()
        self.numerics = "a/b"
        self.service = GenerateService(
            "attention-0",
            self.engine,
            dataclasses.replace(LIMITS, max_open=max_open),
            lambda: self.numerics,
            lambda: None,
            None,  # type: ignore[arg-type]
        )

    def generate(self, request: pb.GenerateRequest) -> list[pb.GenerateReply]:
        async def run() -> list[pb.GenerateReply]:
            numerics = self.service._admit(request)
            return [reply async for reply in self.service._generate(request, numerics)]

        return asyncio.run(run())


def make_request(**changes: object) -> pb.GenerateRequest:
    fields: dict = {"prompt_ids": [1, 2], "max_tokens": 5, "sampling": pb.Sampling(top_p=1.0)}
    return pb.GenerateRequest(**(fields | changes))


def test_a_plain_request_passes() -> None:
    check_request(make_request(priority=255, deadline_s=0.0), LIMITS)


@pytest.mark.parametrize("penalty", [0.0, 0.01, 1.0, 100.0])
def test_a_penalty_that_is_given_within_limits_or_not_at_all_passes(penalty: float) -> None:
    check_request(make_request(sampling=pb.Sampling(top_p=1.0, repetition_penalty=penalty)), LIMITS)


@pytest.mark.parametrize(
    "changes",
    [
        {"deadline_s": float("nan")},
        {"deadline_s": float("inf")},
        {"deadline_s": -1.0},
        {"priority": 256},
        {"thinking_budget": pb.ThinkingBudget(start_id=5, end_id=5, forced_ids=[5])},
        {"thinking_budget": pb.ThinkingBudget(start_id=5, end_id=6, forced_ids=[5, 6])},
        {"thinking_budget": pb.ThinkingBudget(start_id=5, end_id=6, forced_ids=[6], until_ids=[100])},
        {"sampling": pb.Sampling(top_p=1.0, logit_bias={3: float("nan")})},
        {"sampling": pb.Sampling(top_p=1.0, temperature=float("nan"))},
        {"sampling": pb.Sampling(top_p=1.0, repetition_penalty=0.0005)},
        {"sampling": pb.Sampling(top_p=1.0, repetition_penalty=101.0)},
        {"sampling": pb.Sampling(top_p=0.0)},
        {"sampling": pb.Sampling(top_p=1.0, logit_bias={100: 1.0})},
    ],
)
def test_what_cannot_be_honoured_is_refused(changes: dict) -> None:
    with pytest.raises(FleetError) as caught:
        check_request(make_request(**changes), LIMITS)
    assert caught.value.code is Code.BAD_REQUEST


@pytest.mark.parametrize("begun", [False, True])
def test_a_budget_reaches_the_sequence_whole(begun: bool) -> None:
    wire = pb.ThinkingBudget(max_tokens=0, start_id=5, end_id=6, forced_ids=[7, 6], until_ids=[8, 9], begun=begun)
    sequence = make_sequence(make_request(thinking_budget=wire), lambda update: None)
    assert sequence.budget == ThinkingBudget(0, 5, 6, (7, 6), frozenset({8, 9}), begun)
    assert sequence.forced_token() == (7 if begun else None)


def test_the_deadline_ends_a_call_while_its_step_waits() -> None:
    worker = Worker()
    with pytest.raises(FleetError) as caught:
        worker.generate(make_request(deadline_s=0.1))
    assert caught.value.code is Code.DEADLINE
    assert worker.engine.cancelled == worker.engine.added
    assert worker.service.num_open == 0


def test_tokens_of_another_numerics_class_are_not_handed_on() -> None:
    worker = Worker()

    def serve(sequence: Sequence) -> None:
        worker.numerics = "a/c"
        sequence.publish(([TokenOut(7, None, ())], ""))

    worker.engine.serve = serve
    with pytest.raises(FleetError) as caught:
        worker.generate(make_request())
    assert caught.value.code is Code.WRONG_NUMERICS
    assert worker.engine.cancelled == worker.engine.added


def test_a_caller_that_leaves_between_replies_frees_its_sequence() -> None:
    worker = Worker()
    worker.engine.serve = lambda sequence: sequence.publish(([TokenOut(7, None, ())], ""))

    async def run() -> None:
        context = Context()
        replies = worker.service.Generate(make_request(), context)  # type: ignore[arg-type]
        assert (await anext(replies)).token_ids == [7]
        await replies.aclose()  # type: ignore[attr-defined]
        assert worker.engine.cancelled == worker.engine.added
        assert context.metadata == ((ADMITTED, "attention-0"),)

    asyncio.run(run())


def test_what_is_refused_was_never_taken() -> None:
    worker = Worker()
    context = Context()

    async def run() -> None:
        replies = worker.service.Generate(make_request(max_tokens=0), context)  # type: ignore[arg-type]
        with pytest.raises(Aborted, match="BAD_REQUEST: max_tokens"):
            await anext(replies)

    asyncio.run(run())
    assert not context.metadata
    assert not worker.engine.added


class Call:
    """One Generate call under way."""

    def __init__(self, worker: Worker, **changes: object) -> None:
        self.context = Context()
        self.task = asyncio.ensure_future(self._run(worker, make_request(**changes)))

    async def _run(self, worker: Worker, request: pb.GenerateRequest) -> str:
        try:
            async for reply in worker.service.Generate(request, self.context):  # type: ignore[arg-type]
                if reply.finish_reason:
                    return reply.finish_reason
        except Aborted as refused:
            return str(refused)
        return ""

    @property
    def was_taken(self) -> bool:
        return bool(self.context.metadata)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def finish(sequence: Sequence) -> None:
    sequence.publish(([TokenOut(7, None, ())], "stop"))


@pytest.mark.parametrize("most", [1, 7, 320])
def test_of_a_thousand_requests_at_once_as_many_are_taken_as_may_be_and_all_of_those_end(most: int) -> None:
    worker = Worker(most)

    async def run() -> None:
        calls = [Call(worker) for _ in range(1000)]
        await settle()
        assert (worker.service.num_open, worker.service.num_refused) == (most, 1000 - most)
        assert len(worker.engine.added) == most
        for sequence in worker.engine.added:
            finish(sequence)
        ends = await asyncio.gather(*(call.task for call in calls))
        assert ends == ["stop"] * most + [f"OVERLOADED: attention-0 has {most} requests, the limit is {most}"] * (
            1000 - most
        )
        assert [call.was_taken for call in calls] == [True] * most + [False] * (1000 - most)
        assert worker.service.num_open == 0

    asyncio.run(run())


def test_there_is_room_for_as_many_as_end_or_are_cancelled() -> None:
    worker = Worker(3)

    async def run() -> None:
        calls = [Call(worker) for _ in range(3)]
        await settle()
        finish(worker.engine.added[0])
        calls[1].task.cancel()
        await settle()
        assert worker.engine.cancelled == [worker.engine.added[1]]
        more = [Call(worker) for _ in range(3)]
        await settle()
        assert [call.was_taken for call in more] == [True, True, False]
        for call in (*calls, *more):
            call.task.cancel()
        await settle()
        assert worker.service.num_open == 0

    asyncio.run(run())


@pytest.mark.parametrize("changes", [{"taken_before": True}, {"generated_ids": [3]}, {"generated_ids": [3, 4]}])
def test_what_a_worker_had_taken_is_never_refused_and_counts(changes: dict) -> None:
    worker = Worker(2)

    async def run() -> None:
        calls = [Call(worker) for _ in range(3)] + [Call(worker, **changes) for _ in range(3)]
        await settle()
        assert [call.was_taken for call in calls] == [True, True, False, True, True, True]
        for call in calls:
            call.task.cancel()
        await settle()
        calls = [Call(worker, **changes) for _ in range(2)] + [Call(worker)]
        await settle()
        assert [call.was_taken for call in calls] == [True, True, False]
        for call in calls:
            call.task.cancel()
        await settle()

    asyncio.run(run())


def test_a_full_worker_looks_at_nothing_of_a_request() -> None:
    worker = Worker(1)

    async def run() -> None:
        first = Call(worker)
        await settle()
        assert (await Call(worker, max_tokens=0).task).startswith("OVERLOADED")
        first.task.cancel()
        await settle()
        assert (await Call(worker, max_tokens=0).task).startswith("BAD_REQUEST")

    asyncio.run(run())


def test_without_a_limit_all_are_taken() -> None:
    worker = Worker(None)

    async def run() -> None:
        calls = [Call(worker) for _ in range(1000)]
        await settle()
        assert worker.service.num_open == 1000
        for call in calls:
            call.task.cancel()
        await settle()

    asyncio.run(run())
