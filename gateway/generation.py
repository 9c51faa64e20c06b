"""One sequence on whichever worker can run it: the replies of Generate, carried over a worker's failure.

Knows nothing of text. 1. Pick a worker and stream its replies. 2. If it refuses before the first token, try one other.
3. If it is lost, or fails later, hand prompt and tokens so far to another worker of the same numerics class, which continues
identically; each process is tried once. 4. If there is none, wait a while for one to come; then the worker's error is the
sequence's.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator

import grpc

from ..proto.errors import Code, FleetError, from_details
from ..proto.generated import generate_pb2 as pb
from .backend import Backend, Worker

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
# How much longer than the request's deadline its worker is waited for.
_GRACE_S = 1.0


async def replies(
    backend: Backend, request: pb.GenerateRequest, worker_wait_s: float
) -> AsyncGenerator[pb.GenerateReply, None]:
    """Every token exactly once; raises FleetError. Closing the generator cancels the call at the worker."""
    sequence = _Sequence(backend, request, worker_wait_s)
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
    def __init__(self, backend: Backend, request: pb.GenerateRequest, worker_wait_s: float) -> None:
        self._backend = backend
        self._request = request
        self._worker_wait_s = worker_wait_s
        self._tried: set[Worker] = set()
        self._failure: FleetError | None = None
        self._ends_at = asyncio.get_running_loop().time() + request.deadline_s if request.deadline_s else None

    async def pick(self) -> Worker:
        """Waits for one, if all that there are have failed; a worker that was started again counts as another."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + self._worker_wait_s
        while True:
            try:
                return self._pick_now()
            except FleetError as error:
                if loop.time() >= give_up:
                    raise self._failure or error from None
            ends_at = give_up if self._ends_at is None else min(give_up, self._ends_at)
            await self._backend.wait_for_update(ends_at - loop.time())
            self._set_deadline()

    def _pick_now(self) -> Worker:
        return self._backend.pick(
            self._request.prompt_ids,
            salt=self._request.cache_salt,
            numerics=self._request.numerics.partition("/")[0],
            avoid=self._tried,
        )

    async def run_on(self, worker: Worker) -> AsyncGenerator[pb.GenerateReply, None]:
        is_resumption = bool(self._request.generated_ids)
        self._set_deadline()
        with self._backend.running(worker):
            deadline_s = self._request.deadline_s
            call = worker.generate(self._request, deadline_s + _GRACE_S if deadline_s else None)
            try:
                async for reply in call:
                    self._note(reply, is_resumption)
                    yield reply
            except grpc.aio.AioRpcError as error:
                raise _typed(error) from error
            finally:
                call.cancel()

    def give_up_or_go_on(self, worker: Worker, error: FleetError) -> None:
        started = bool(self._request.generated_ids)
        self._tried.add(worker)
        tried_enough = not started and self._failure is not None and error.code not in _GONE
        if error.code not in _HOPEFUL or tried_enough:
            raise error
        self._failure = error
        num_sent = len(self._request.generated_ids)
        _log.warning(
            "%s: %s failed after %d tokens: %s", self._request.request_id, worker.seat, num_sent, error.details
        )

    def _note(self, reply: pb.GenerateReply, is_resumption: bool) -> None:
        if reply.numerics and not self._request.numerics:
            self._request.numerics = reply.numerics
        if is_resumption:
            reply.seat = ""  # the first reply has said what the client is told
        self._request.generated_ids.extend(reply.token_ids)

    def _set_deadline(self) -> None:
        if self._ends_at is None:
            return
        left_s = self._ends_at - asyncio.get_running_loop().time()
        if left_s <= 0:
            raise FleetError(Code.DEADLINE, f"the request's timeout of {self._request.deadline_s:g} s has passed")
        self._request.deadline_s = left_s


def _typed(error: grpc.aio.AioRpcError) -> FleetError:
    """A worker that does not end an overdue sequence is cut off by gRPC, whose words are not ours."""
    typed = from_details(error.code(), error.details())
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and typed.code is Code.INTERNAL:
        return FleetError(Code.DEADLINE, "the request's timeout has passed")
    return typed
