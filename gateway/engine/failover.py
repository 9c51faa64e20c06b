"""Failover of one sequence: carries the replies of Generate over the failure of attention workers.

Knows nothing of text. 1. The sequence picks a worker and streams its replies. 2. When the worker fails, ``failover_table.py`` says what
follows, by the error and by how far the sequence is. Another worker of the same numerics class gets prompt and tokens so far
and continues identically. 3. If only workers of another class are left, ``on_inexact`` decides whether the sequence ends or goes
on there and says so. 4. If there is no worker at all, the sequence waits a while for one. 5. A sequence under which too many workers died
in a row ends, as it must have killed them. Where several sequences were hit by the same deaths, each runs alone among them, one after
the other, until it is well beyond the place, or one more worker has died of it, which clears the others.
"""

import asyncio
import contextlib
import hashlib
import logging
from array import array
from collections.abc import AsyncGenerator

import grpc

from ...proto.admission import ADMITTED
from ...proto.errors import Code, FleetError, from_call
from ...proto.generated import generate_pb2 as pb
from .backend import Backend, Worker
from .crash_attribution import CrashAttribution
from .failover_settings import FailoverSettings
from .failover_table import ON_FAILURE, Event, Isolation, Next, Stage, Verdict, isolation_after

_log = logging.getLogger(__name__)
# How often a worker without experts is asked again, at least.
_READY_AGAIN_S = 1.0
# How much longer than the request's deadline its worker is waited for.
_GRACE_S = 1.0


async def generate_with_failover(
    backend: Backend, request: pb.GenerateRequest, settings: FailoverSettings
) -> AsyncGenerator[pb.GenerateReply, None]:
    """Every token exactly once; raises FleetError. Closing the generator cancels the call at the worker.

    The first reply says that a worker has taken the sequence; it may be empty. A reply names a numerics class if its tokens are the
    first ones, or of another class than those before.
    """
    sequence = _Sequence(backend, request, settings)
    with contextlib.closing(sequence):
        while True:
            worker = await sequence.pick()
            try:
                async with contextlib.aclosing(sequence.run_on(worker)) as stream:
                    async for reply in stream:
                        yield reply
                        if reply.finish_reason:
                            return
                raise FleetError(Code.LANE_LOST, f"{worker.seat} ended the stream without a reason")
            except FleetError as error:
                sequence.on_failure(worker, error)


class _Sequence:
    def __init__(self, backend: Backend, request: pb.GenerateRequest, settings: FailoverSettings) -> None:
        self._backend = backend
        self._request = request
        self._settings = settings
        self._numerics = ""  # of the newest token
        self._verdicts: dict[Worker, Verdict] = {}
        self._refusal: FleetError | None = None  # of the first worker that has too many requests
        self._failure: FleetError | None = None  # of the latest worker that failed
        self._waits_since: float | None = None
        self._identity = object()  # for workers and deaths, which then keep nothing else of this
        self._deaths = CrashAttribution(self._identity)
        self._isolation = Isolation.NONE
        self._ends_at = asyncio.get_running_loop().time() + request.deadline_s if request.deadline_s else None

    @property
    def stage(self) -> Stage:
        if self._request.generated_ids:
            return Stage.STARTED
        return Stage.TAKEN if self._request.taken_before else Stage.OFFERED

    async def pick(self) -> Worker:
        """The worker that goes on. Waits for one where all have failed; a worker that was started again counts as another."""
        if self._isolation is Isolation.WANTED:
            await self._await_turn()
        loop = asyncio.get_running_loop()
        while True:
            try:
                return self._pick_now()
            except FleetError as error:
                if self._waits_since is None:
                    self._waits_since = loop.time()
                give_up = self._waits_since + self._settings.worker_wait_s
                if self._refusal or self._is_inexact_for_good or loop.time() >= give_up:
                    raise self._why_not(error) from None
            ends_at = give_up if self._ends_at is None else min(give_up, self._ends_at)
            left_s = ends_at - loop.time()
            is_soon = Verdict.NOT_READY in self._verdicts.values()
            await self._backend.wait_for_update(min(left_s, _READY_AGAIN_S) if is_soon else left_s)
            self._withdraw(Verdict.NOT_READY)
            self._set_deadline()

    async def _await_turn(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(self._ends_at):
                await self._backend.isolation.acquire()
                self._isolate(Event.TURN)
                if not self._is_suspect:
                    self._isolate(Event.CLEARED)
        self._set_deadline()

    def _isolate(self, event: Event) -> None:
        was_running = self._isolation is Isolation.RUNNING
        self._isolation = isolation_after(self._isolation, event)
        if was_running:
            self._backend.isolation.release()

    @property
    def _is_suspect(self) -> bool:
        return len(self._deaths.seats) >= self._settings.max_worker_deaths

    def close(self) -> None:
        """Lets other suspects run."""
        self._isolate(Event.END)

    def _pick_now(self) -> Worker:
        request = self._request
        request.numerics = self._numerics
        try:
            attention_class = self._numerics.partition("/")[0]
            return self._backend.pick(
                request.prompt_ids, salt=request.cache_salt, numerics=attention_class, avoid=self._verdicts
            )
        except FleetError:
            if self._settings.on_inexact == "fail" or not self._numerics:
                raise
        worker = self._backend.pick(request.prompt_ids, salt=request.cache_salt, avoid=self._unusable())
        request.numerics = ""
        return worker

    @property
    def _is_inexact_for_good(self) -> bool:
        """The workers of the right class have come to another one; waiting would not bring it back."""
        return self._failure is not None and self._failure.code is Code.WRONG_NUMERICS and bool(self._numerics)

    def _why_not(self, error: FleetError) -> FleetError:
        """``error`` says that there is no worker to pick."""
        if self._refusal:
            return self._refusal
        others = set(self._backend.workers) - self._unusable()
        if not (self._numerics and others):
            return self._failure or error
        return FleetError(
            Code.WRONG_NUMERICS,
            f"only workers of another numerics class than {self._numerics!r}, in which the answer was begun, are left to "
            f"continue it ({self._failure}); a gateway with --on-inexact continue would go on with other last bits",
        )

    def _unusable(self) -> set[Worker]:
        """Workers that would not go on with it in any numerics class."""
        return {worker for worker, verdict in self._verdicts.items() if verdict in (Verdict.FAILED, Verdict.NOT_READY)}

    def _withdraw(self, verdict: Verdict) -> None:
        self._verdicts = {worker: other for worker, other in self._verdicts.items() if other is not verdict}

    async def run_on(self, worker: Worker) -> AsyncGenerator[pb.GenerateReply, None]:
        is_resumption = bool(self._request.generated_ids)
        self._set_deadline()
        request = self._request
        with self._backend.running(worker, self._identity, len(request.prompt_ids) + len(request.generated_ids)):
            deadline_s = request.deadline_s
            call = worker.generate(request, deadline_s + _GRACE_S if deadline_s else None)
            try:
                if ADMITTED in await call.initial_metadata() and not request.taken_before:
                    self._note_taken()
                    yield pb.GenerateReply()
                async for reply in call:
                    self._note(reply, is_resumption)
                    yield reply
            except grpc.aio.AioRpcError as error:
                if _is_death(error) and ADMITTED in await call.initial_metadata():
                    self._note_death(worker)
                raise _typed(error) from error
            finally:
                call.cancel()

    def _note_taken(self) -> None:
        """From here on no worker refuses it for having too many."""
        self._request.taken_before = True
        if self._refusal:
            self._refusal = None
            self._withdraw(Verdict.FULL)

    def _note_death(self, worker: Worker) -> None:
        """Raises FleetError WORKER_DEATHS when it was one too many."""
        request = self._request
        self._deaths.add(worker.death(), len(request.generated_ids))
        self._isolate(Event.DEATH)
        seats = self._deaths.seats
        if not self._is_suspect:
            return
        if len(seats) == self._settings.max_worker_deaths and not self._deaths.has_one_suspect:
            _log.warning(
                "%s: was running, among others, when %s died; it goes on alone", request.request_id, ", ".join(seats)
            )
            self._isolate(Event.SHARED_DEATHS)
            return
        self._deaths.blame()
        fingerprint = hashlib.sha256(array("I", request.prompt_ids).tobytes()).hexdigest()
        _log.error(
            "%s: ended, it was running when %s died; SHA-256 of its %d prompt ids: %s",
            request.request_id, ", ".join(seats), len(request.prompt_ids), fingerprint,
        )  # fmt: skip
        raise FleetError(
            Code.WORKER_DEATHS,
            f"the request was running during {len(seats)} worker deaths in a row ({', '.join(seats)}); it is not tried again",
        )

    def on_failure(self, worker: Worker, error: FleetError) -> None:
        """Does what the table says; raises ``error`` where it ends the sequence."""
        verdict, then = ON_FAILURE[self.stage, error.code]
        if verdict is not None:
            self._verdicts[worker] = verdict
        if verdict is Verdict.FULL:
            self._refusal = self._refusal or error
            return
        if then is Next.END or (then is Next.ONE_OTHER and self._failure is not None):
            raise error
        self._failure = error
        if verdict is not Verdict.NOT_READY:
            self._waits_since = None
        elif self._waits_since is not None:
            return  # it was said before
        num_sent = len(self._request.generated_ids)
        _log.warning(
            "%s: %s failed after %d tokens: %s", self._request.request_id, worker.seat, num_sent, error.details
        )

    def _note(self, reply: pb.GenerateReply, is_resumption: bool) -> None:
        if is_resumption:
            reply.seat = ""  # the first reply has said what the client is told
        self._waits_since = None
        self._note_taken()
        if reply.numerics == self._numerics:
            reply.numerics = ""
        elif reply.numerics:
            self._numerics = reply.numerics
            self._withdraw(Verdict.OTHER_CLASS)
        self._request.generated_ids.extend(reply.token_ids)
        if self._isolation is Isolation.RUNNING and self._deaths.are_behind(len(self._request.generated_ids)):
            self._isolate(Event.CLEARED)

    def _set_deadline(self) -> None:
        if self._ends_at is None:
            return
        left_s = self._ends_at - asyncio.get_running_loop().time()
        if left_s <= 0:
            raise FleetError(Code.DEADLINE, f"the request's timeout of {self._request.deadline_s:g} s has passed")
        self._request.deadline_s = left_s


def _is_death(error: grpc.aio.AioRpcError) -> bool:
    """Whether the connection broke, rather than that the worker said anything."""
    return error.code() is grpc.StatusCode.UNAVAILABLE and from_call(error).code is Code.LANE_LOST


def _typed(error: grpc.aio.AioRpcError) -> FleetError:
    """A worker that does not end an overdue sequence is cut off by gRPC, whose words are not ours."""
    typed = from_call(error)
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and typed.code is Code.INTERNAL:
        return FleetError(Code.DEADLINE, "the request's timeout has passed")
    return typed
