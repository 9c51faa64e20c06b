"""One sequence on whichever worker can run it: the replies of Generate, carried over a worker's failure.

Knows nothing of text. 1. Pick a worker and stream its replies. 2. If it refuses before the first token, try one other; if it has too
many, all others, and as long as no worker has taken the sequence it does not wait for them, but ends. 3. If it is lost, or fails later, hand prompt and tokens so far to another worker of the same numerics class, which continues
identically; each process is tried once, but one that has no experts to ask is tried again until it has. 4. If only those of
another class are left, the sequence ends, or goes on there and says so, as ``on_inexact`` has it. 5. If there is none at all, wait
a while for one to come; then the worker's error is the sequence's. A sequence under which too many workers died in a row ends, as
it must have killed them; where several were hit by the same deaths, each goes on alone among them, one after the other, until it
is well beyond the place or one more worker has died of it, which clears the others of the deaths that they shared with it.
"""

import asyncio
import contextlib
import hashlib
import logging
from array import array
from collections.abc import AsyncGenerator
from typing import Literal

import grpc

from ...proto.admission import ADMITTED
from ...proto.errors import Code, FleetError, from_call
from ...proto.generated import generate_pb2 as pb
from .backend import Backend, Worker
from .crash_attribution import CrashAttribution
from .failover_settings import Resumption

_log = logging.getLogger(__name__)
# What another worker may not suffer from; anything else lies in the request itself.
_HOPEFUL = frozenset(
    {
        Code.LANE_LOST,
        Code.DRAINING,
        Code.NOT_READY,
        Code.NO_REPLICA,
        Code.INTERNAL,
        Code.OVERLOADED,
        Code.WRONG_NUMERICS,
    }
)
# The worker itself is gone or going; the next one has every chance.
_GONE = frozenset({Code.LANE_LOST, Code.DRAINING, Code.NOT_READY})
# How often a worker without experts is asked again, at least.
_READY_AGAIN_S = 1.0
# How much longer than the request's deadline its worker is waited for.
_GRACE_S = 1.0


async def replies(
    backend: Backend, request: pb.GenerateRequest, resumption: Resumption
) -> AsyncGenerator[pb.GenerateReply, None]:
    """Every token exactly once; raises FleetError. Closing the generator cancels the call at the worker.

    The first reply says that a worker has taken the sequence; it may be empty. A reply names a numerics class if its tokens are the
    first ones, or of another class than those before.
    """
    sequence = _Sequence(backend, request, resumption)
    with contextlib.closing(sequence):
        while True:
            worker = await sequence.pick()
            try:
                async for reply in sequence.run_on(worker):
                    yield reply
                    if reply.finish_reason:
                        return
                raise FleetError(Code.LANE_LOST, f"{worker.seat} ended the stream without a reason")
            except FleetError as error:
                sequence.give_up_or_go_on(worker, error)


class _Sequence:
    def __init__(self, backend: Backend, request: pb.GenerateRequest, resumption: Resumption) -> None:
        self._backend = backend
        self._request = request
        self._resumption = resumption
        self._numerics = ""  # of the newest token
        self._tried: set[Worker] = set()
        self._of_other_class: set[Worker] = set()  # they serve, but would not continue identically
        self._not_ready: set[Worker] = set()  # they will serve
        self._full: dict[Worker, FleetError] = {}  # they serve, and will not take it
        self._waits_since: float | None = None
        self._identity = object()  # for workers and deaths, which then keep nothing else of this
        self._deaths = CrashAttribution(self._identity)
        self._trial: Literal["none", "wanted", "running"] = "none"
        self._failure: FleetError | None = None
        self._ends_at = asyncio.get_running_loop().time() + request.deadline_s if request.deadline_s else None

    async def pick(self) -> Worker:
        """Waits for one, if all that there are have failed; a worker that was started again counts as another."""
        if self._trial == "wanted":
            await self._await_trial()
        loop = asyncio.get_running_loop()
        while True:
            try:
                return self._pick_now()
            except FleetError as error:
                if self._waits_since is None:
                    self._waits_since = loop.time()
                give_up = self._waits_since + self._resumption.worker_wait_s
                if self._full or self._is_inexact_for_good or loop.time() >= give_up:
                    raise self._why_not(error) from None
            ends_at = give_up if self._ends_at is None else min(give_up, self._ends_at)
            left_s = ends_at - loop.time()
            await self._backend.wait_for_update(min(left_s, _READY_AGAIN_S) if self._not_ready else left_s)
            self._not_ready.clear()
            self._set_deadline()

    async def _await_trial(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(self._ends_at):
                await self._backend.trial.acquire()
                self._trial = "running"
                if not self._is_suspect:
                    self.close()  # meanwhile somebody else was found to have caused them
        self._set_deadline()

    @property
    def _is_suspect(self) -> bool:
        return len(self._deaths.seats) >= self._resumption.max_worker_deaths

    def close(self) -> None:
        """Ends its trial, if it is on one."""
        if self._trial == "running":
            self._backend.trial.release()
        self._trial = "none"

    def _pick_now(self) -> Worker:
        request = self._request
        request.numerics = self._numerics
        try:
            avoid = self._tried | self._of_other_class | self._not_ready | self._full.keys()
            attention_class = self._numerics.partition("/")[0]
            return self._backend.pick(
                request.prompt_ids, salt=request.cache_salt, numerics=attention_class, avoid=avoid
            )
        except FleetError:
            if self._resumption.on_inexact == "fail" or not self._numerics:
                raise
        worker = self._backend.pick(request.prompt_ids, salt=request.cache_salt, avoid=self._tried | self._not_ready)
        request.numerics = ""
        return worker

    @property
    def _is_inexact_for_good(self) -> bool:
        """The workers of the right class have come to another one; waiting would not bring it back."""
        return self._failure is not None and self._failure.code is Code.WRONG_NUMERICS and bool(self._numerics)

    def _why_not(self, error: FleetError) -> FleetError:
        """``error`` says that there is no worker to pick."""
        if self._full:
            return next(iter(self._full.values()))
        others = set(self._backend.workers) - self._tried - self._not_ready
        if not (self._numerics and others):
            return self._failure or error
        return FleetError(
            Code.WRONG_NUMERICS,
            f"only workers of another numerics class than {self._numerics!r}, in which the answer was begun, are left to "
            f"continue it ({self._failure}); a gateway with --on-inexact continue would go on with other last bits",
        )

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
        self._full.clear()

    def _note_death(self, worker: Worker) -> None:
        """Raises FleetError WORKER_DEATHS when it was one too many."""
        request = self._request
        self._deaths.add(worker.death(), len(request.generated_ids))
        self.close()  # a trial that it was on is over
        seats = self._deaths.seats
        if not self._is_suspect:
            return
        if len(seats) == self._resumption.max_worker_deaths and not self._deaths.has_one_suspect:
            _log.warning("%s: was running, among others, when %s died; on trial", request.request_id, ", ".join(seats))
            self._trial = "wanted"
            return
        self._deaths.convict()
        fingerprint = hashlib.sha256(array("I", request.prompt_ids).tobytes()).hexdigest()
        _log.error(
            "%s: ended, it was running when %s died; SHA-256 of its %d prompt ids: %s",
            request.request_id, ", ".join(seats), len(request.prompt_ids), fingerprint,
        )  # fmt: skip
        raise FleetError(
            Code.WORKER_DEATHS,
            f"the request was running during {len(seats)} worker deaths in a row ({', '.join(seats)}); it is not tried again",
        )

    def give_up_or_go_on(self, worker: Worker, error: FleetError) -> None:
        started = bool(self._request.generated_ids)
        if error.code is Code.OVERLOADED and not self._request.taken_before:
            self._full[worker] = error
            return
        if error.code is Code.NOT_READY:
            self._not_ready.add(worker)
        elif error.code is not Code.WRONG_NUMERICS:
            self._tried.add(worker)
        elif started:
            self._of_other_class.add(worker)
        tried_enough = not started and self._failure is not None and error.code not in _GONE
        if error.code not in _HOPEFUL or tried_enough:
            raise error
        self._failure = error
        if error.code is not Code.NOT_READY:
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
            self._of_other_class.clear()
        self._request.generated_ids.extend(reply.token_ids)
        if self._trial == "running" and self._deaths.are_behind(len(self._request.generated_ids)):
            self.close()

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
