"""A running request: its sequences generated at once, their events merged in order of arrival.

Knows nothing of JSON or HTTP. No event comes before workers have taken all of its sequences, so that one which none takes refuses the
whole request. Leaving the context cancels what still runs at the workers; ``abort`` ends the request with
an error from outside.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Self

from ...proto.errors import FleetError
from ..events.answer import Answer, Event
from ..http.errors import ApiError, from_fleet
from ..http.metrics import Metrics, Watch
from .backend import Backend
from .failover import generate_with_failover
from .failover_settings import FailoverSettings
from .prepared_request import ApiRequest, PreparedRequest

_log = logging.getLogger(__name__)


class RunningRequest:
    def __init__(
        self,
        job: PreparedRequest[ApiRequest],
        answers: Sequence[Answer],
        backend: Backend,
        metrics: Metrics,
        failover: FailoverSettings,
    ) -> None:
        self._failover = failover
        self._job = job
        self._answers = answers
        self._backend = backend
        self._watch: Watch = metrics.watch(job.request.model, sum(map(len, job.prompts)))
        self._queue: asyncio.Queue[tuple[int, list[Event]] | ApiError] = asyncio.Queue()
        self._has_failed = False
        self._not_taken = set(range(len(answers)))
        self._decided = asyncio.Event()
        self._refusal: ApiError | None = None  # before all were taken
        self._pumps: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._watch.start()
        self._pumps = [asyncio.create_task(self._pump(index)) for index in range(len(self._answers))]
        for pump in self._pumps:
            pump.add_done_callback(self._answer_for_bugs)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)
        self._note_invalid_calls()
        unfinished = "error" if self._has_failed else "abort"
        self._watch.end([answer.finish_reason or unfinished for answer in self._answers])

    async def events(self) -> AsyncIterator[tuple[int, Event]]:
        """Until every answer is over; raises ApiError."""
        await self._decided.wait()
        if self._refusal is not None:
            raise self._refusal
        while True:
            if self._queue.empty() and all(answer.finish_reason for answer in self._answers):
                return
            item = await self._queue.get()
            if isinstance(item, ApiError):
                raise item
            for event in item[1]:
                yield item[0], event

    async def wait_until_decided(self, timeout_s: float) -> None:
        """Returns when workers have taken all of it, or it has failed; at the latest after ``timeout_s``."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._decided.wait(), timeout_s)

    @property
    def num_inexact(self) -> int:
        """How often an answer has changed its numerics class so far."""
        return sum(answer.num_inexact for answer in self._answers)

    def abort(self, error: ApiError) -> None:
        self._has_failed = True
        if not self._decided.is_set():
            self._refusal = error
            self._decided.set()
        self._queue.put_nowait(error)

    async def _pump(self, index: int) -> None:
        answer = self._answers[index]
        try:
            async with aclosing(
                generate_with_failover(self._backend, self._job.sequences[index], self._failover)
            ) as stream:
                async for reply in stream:
                    self._note_taken(index)
                    if reply.numerics and answer.numerics:
                        self._watch.inexact_continuation()
                    self._take(index, answer.push(reply), len(reply.token_ids))
                    if answer.finish_reason is not None:
                        return
        except FleetError as error:
            self.abort(from_fleet(error))

    def _answer_for_bugs(self, pump: asyncio.Task[None]) -> None:
        """An unexpected error must end the request with an answer, not leave it waiting."""
        error = None if pump.cancelled() else pump.exception()
        if error is not None:
            _log.error("%s: failed while reading the answer", self._job.request_id, exc_info=error)
            self.abort(ApiError("internal", "internal error"))

    def _note_invalid_calls(self) -> None:
        num_calls = sum(answer.reader.num_invalid_calls for answer in self._answers)
        if num_calls:
            self._watch.invalid_calls(num_calls)
            _log.warning("%s: tool calls that name no tool became content: %d", self._job.request_id, num_calls)

    def _note_taken(self, index: int) -> None:
        self._not_taken.discard(index)
        if not self._not_taken:
            self._decided.set()

    def _take(self, index: int, events: list[Event], num_tokens: int) -> None:
        if num_tokens:
            self._watch.tokens(index, num_tokens)
        self._queue.put_nowait((index, events))
