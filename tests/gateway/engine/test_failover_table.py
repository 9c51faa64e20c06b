"""Every case of the failover tables, and random fates of workers driven through the real failover."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expertfleet.gateway.engine.crash_attribution import Death
from expertfleet.gateway.engine.failover import generate_with_failover
from expertfleet.gateway.engine.failover_settings import FailoverSettings
from expertfleet.gateway.engine.failover_table import (
    ON_EVENT,
    ON_FAILURE,
    Event,
    Isolation,
    Next,
    Stage,
    Verdict,
    isolation_after,
)
from expertfleet.proto.admission import ADMITTED
from expertfleet.proto.errors import Code, FleetError
from expertfleet.proto.generated import generate_pb2 as pb

ANSWER = [11, 12, 13, 14, 15, 16]


def test_the_table_has_a_row_for_every_stage_and_every_code() -> None:
    assert set(ON_FAILURE) == {(stage, code) for stage in Stage for code in Code}


def test_a_started_answer_ends_only_with_what_lies_in_the_request() -> None:
    ends = {
        code for (stage, code), (_, then) in ON_FAILURE.items() if stage is Stage.STARTED and then is not Next.OTHER
    }
    hopeful = {code for (_, code), (_, then) in ON_FAILURE.items() if then is not Next.END}
    assert ends == set(Code) - hopeful


def test_only_a_sequence_that_no_worker_has_taken_is_refused_as_one_too_many() -> None:
    assert [case for case, (verdict, _) in ON_FAILURE.items() if verdict is Verdict.FULL] == [
        (Stage.OFFERED, Code.OVERLOADED)
    ]


def test_an_event_without_a_row_names_both() -> None:
    with pytest.raises(RuntimeError, match="isolation is NONE and TURN came"):
        isolation_after(Isolation.NONE, Event.TURN)
    for isolation, event in ON_EVENT:
        assert isolation_after(isolation, event) in Isolation


class Call:
    """A call of Generate whose fate is drawn: it is taken or not, sends some tokens, and ends by itself or with an error."""

    def __init__(self, world: "World", worker: "Worker", request: pb.GenerateRequest) -> None:
        self.world, self.worker, self.request = world, worker, request
        self.taken, self.num_tokens, self.code = world.fate()
        self.begun = list(request.generated_ids)

    async def initial_metadata(self) -> tuple[tuple[str, str], ...]:
        return (ADMITTED,) if self.taken or self.num_tokens else ()

    def __aiter__(self) -> AsyncIterator[pb.GenerateReply]:
        return self._replies()

    async def _replies(self) -> AsyncIterator[pb.GenerateReply]:
        position, left = len(self.begun), self.num_tokens
        while position < len(ANSWER) and left:
            await asyncio.sleep(0)
            position, left = position + 1, left - 1
            finish = "stop" if position == len(ANSWER) else ""
            yield pb.GenerateReply(
                token_ids=ANSWER[position - 1 : position], numerics=f"{self.worker.numerics}/s", finish_reason=finish
            )
        if position < len(ANSWER):
            raise call_error(self.code)

    def cancel(self) -> None:
        self.world.num_cancelled += 1


def call_error(code: Code) -> grpc.aio.AioRpcError:
    status = grpc.StatusCode.UNAVAILABLE if code is Code.LANE_LOST else grpc.StatusCode.INTERNAL
    return grpc.aio.AioRpcError(
        status, grpc.aio.Metadata(), grpc.aio.Metadata(("expertfleet-code", code.name)), details=f"{code.name}: drawn"
    )


class Worker:
    def __init__(self, world: "World", seat: str, numerics: str) -> None:
        self.world, self.seat, self.numerics = world, seat, numerics

    def generate(self, request: pb.GenerateRequest, timeout_s: float | None) -> Call:
        copy = pb.GenerateRequest()
        copy.CopyFrom(request)
        self.world.calls.append((self, copy))
        return Call(self.world, self, copy)

    def death(self) -> Death:
        return Death(self.seat, self.world.victims)


class World:
    """A backend of fake workers; ``fates`` says of each call in turn what becomes of it, and then all calls go well."""

    def __init__(self, classes: list[str], fates: list[tuple[bool, int, Code]], *, is_shared: bool) -> None:
        self.workers = [Worker(self, f"attention-{index}", name) for index, name in enumerate(classes)]
        self.calls: list[tuple[Worker, pb.GenerateRequest]] = []
        self.num_cancelled = 0
        self.victims: list[object] = []
        self.isolation = asyncio.Lock()
        self._fates, self._is_shared = iter(fates), is_shared
        self.num_updates = 0

    def fate(self) -> tuple[bool, int, Code]:
        return next(self._fates, (True, len(ANSWER), Code.INTERNAL))

    def pick(self, prompt_ids: Any, *, salt: str = "", numerics: str = "", avoid: Any = ()) -> Worker:
        for worker in self.workers:
            if worker not in avoid and numerics in ("", worker.numerics):
                return worker
        raise FleetError(Code.NOT_READY, "no attention worker")

    @contextmanager
    def running(self, worker: Worker, sequence: object, num_tokens: int) -> Iterator[None]:
        self.victims = [sequence, object()] if self._is_shared else [sequence]
        yield

    async def wait_for_update(self, timeout_s: float) -> None:
        """A worker comes; it counts as another one."""
        await asyncio.sleep(0)
        self.num_updates += 1
        if self.num_updates < 4:
            self.workers.append(Worker(self, f"newcomer-{self.num_updates}", "a"))


async def drive(world: World, on_inexact: str, most_deaths: int) -> tuple[list[int], list[str], FleetError | None]:
    request = pb.GenerateRequest(request_id="r", prompt_ids=[1, 2], deadline_s=0)
    settings = FailoverSettings(worker_wait_s=0.2, on_inexact=on_inexact, max_worker_deaths=most_deaths)  # type: ignore[arg-type]
    tokens: list[int] = []
    classes: list[str] = []
    try:
        async with aclosing(generate_with_failover(world, request, settings)) as replies:  # type: ignore[arg-type]
            async for reply in replies:
                tokens += reply.token_ids
                classes += [reply.numerics] if reply.numerics else []
                if reply.finish_reason:
                    return tokens, classes, None
    except FleetError as error:
        return tokens, classes, error
    raise AssertionError("it ended with neither a reason nor an error")


FATES = {Stage.OFFERED: (False, 0), Stage.TAKEN: (True, 0), Stage.STARTED: (True, 2)}


@pytest.mark.parametrize(("stage", "code"), sorted(ON_FAILURE, key=str), ids=str)
def test_the_failover_does_what_the_row_says(stage: Stage, code: Code) -> None:
    """Two workers: the first fails as the row says. Both fail: the second as well, and nobody is left."""
    verdict, then = ON_FAILURE[stage, code]

    async def run() -> None:
        once = World(["a", "a"], [(*FATES[stage], code)], is_shared=False)
        tokens, _, error = await drive(once, "fail", 2)
        if then is Next.END:
            assert error is not None
            assert (error.code, len(once.calls)) == (code, 1)
            return
        assert (tokens, error) == (ANSWER, None)
        assert (once.calls[0][0] is once.calls[1][0]) == (verdict is None)
        twice = World(["a", "a", "a"], [(*FATES[stage], code)] * 2, is_shared=False)
        tokens, _, error = await drive(twice, "fail", 3)
        ends_it = then is Next.ONE_OTHER
        assert (error is not None, len(twice.calls)) == (ends_it, 2 if ends_it else 3)

    asyncio.run(run())


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(
    classes=st.lists(st.sampled_from(["a", "a", "b"]), min_size=1, max_size=4),
    fates=st.lists(st.tuples(st.booleans(), st.integers(0, 4), st.sampled_from(sorted(Code))), max_size=6),
    on_inexact=st.sampled_from(["fail", "continue"]),
    most_deaths=st.integers(1, 3),
    is_shared=st.booleans(),
)
def test_whatever_becomes_of_workers_every_token_comes_once_or_one_error_does(
    classes: list[str], fates: Any, on_inexact: str, most_deaths: int, is_shared: bool
) -> None:
    async def run() -> None:
        world = World(classes, fates, is_shared=is_shared)
        tokens, named, error = await drive(world, on_inexact, most_deaths)
        assert tokens == ANSWER[: len(tokens)], "every token once and in order"
        assert (error is None) == (tokens == ANSWER), "all tokens, or one error"
        assert on_inexact == "continue" or len(named) <= 1, "one class, unless the operator allows another"
        assert world.num_cancelled == len(world.calls), "every call was given up in the end"
        assert not world.isolation.locked(), "other suspects may run"
        for (_, earlier), (_, later) in zip(world.calls, world.calls[1:], strict=False):
            assert list(later.generated_ids)[: len(earlier.generated_ids)] == list(earlier.generated_ids)

    asyncio.run(run())
