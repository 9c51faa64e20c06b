"""The wire side of an attention worker: Generate, Describe and Drain.

Knows nothing of tensors. A request is checked whole before the engine sees it; what the worker cannot honour is refused
with a typed error, and a call that ends for any reason frees its sequence. A worker that has as many sequences as it may have
refuses more before it looks at them, but none that a worker had taken before.
"""

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass

import grpc

from ..checkpoint.generation import SAMPLING_RANGES
from ..proto.admission import ADMITTED
from ..proto.errors import Code, FleetError, abort
from ..proto.generated import generate_pb2, generate_pb2_grpc, membership_pb2
from .engine import Engine
from .sequence import SamplingParams, Sequence, ThinkingBudget, TokenOut, Update

logger = logging.getLogger(__name__)

MAX_TOP_LOGPROBS = 20
MAX_PRIORITY = 255
MAX_DEADLINE_S = 1e7


@dataclass(frozen=True)
class Limits:
    """What a request must fit."""

    vocab_size: int
    max_model_len: int
    max_open: int | None = None  # sequences at once, running and waiting; None: any number


class GenerateService(generate_pb2_grpc.AttentionWorkerServicer):
    """Serves sequences on one engine."""

    def __init__(
        self,
        seat: str,
        engine: Engine,
        limits: Limits,
        numerics: Callable[[], str],
        describe: Callable[[], membership_pb2.WorkerReport],
        drain: Callable[[float], Awaitable[bool]],
    ) -> None:
        self.draining = False
        self.num_open = 0  # sequences that were taken and have not ended
        self.num_refused = 0  # sequences for which there was no room
        self._seat = seat
        self._engine = engine
        self._limits = limits
        self._numerics = numerics
        self._describe = describe
        self._drain = drain

    async def Generate(
        self, request: generate_pb2.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[generate_pb2.GenerateReply]:
        try:
            numerics = self._admit(request)
            with self._taken():
                await context.send_initial_metadata(((ADMITTED, self._seat),))
                async with aclosing(self._generate(request, numerics)) as replies:
                    async for reply in replies:
                        yield reply
        except FleetError as error:
            await abort(context, error)

    async def Describe(
        self, request: generate_pb2.DescribeWorkerRequest, context: grpc.aio.ServicerContext
    ) -> membership_pb2.WorkerReport:
        return self._describe()

    async def Drain(
        self, request: membership_pb2.DrainRequest, context: grpc.aio.ServicerContext
    ) -> membership_pb2.DrainReply:
        return membership_pb2.DrainReply(finished=await self._drain(request.timeout_s))

    async def _generate(
        self, request: generate_pb2.GenerateRequest, numerics: str
    ) -> AsyncGenerator[generate_pb2.GenerateReply, None]:
        """Raises FleetError when tokens of another class than ``numerics`` come."""
        loop = asyncio.get_running_loop()
        updates: asyncio.Queue[Update] = asyncio.Queue()
        sequence = make_sequence(request, lambda update: _hand_over(loop, updates, update))
        self._engine.add(sequence)
        finished = False
        first = generate_pb2.GenerateReply(seat=self._seat, numerics=numerics)
        try:
            while not finished:
                update = await _next_update(updates, sequence.deadline)
                if self._numerics() not in ("", numerics):
                    raise FleetError(Code.WRONG_NUMERICS, f"the fleet no longer computes {numerics}")
                if isinstance(update, FleetError):
                    finished = True
                    raise update
                tokens, reason = update
                finished = bool(reason)
                first.num_cached_tokens = sequence.num_reused if first.seat and sequence.num_reused else 0
                yield _fill_reply(first, tokens, reason, request.logprobs)
                first = generate_pb2.GenerateReply()
        finally:
            if not finished:
                self._engine.cancel(sequence)

    @contextmanager
    def _taken(self) -> Iterator[None]:
        """One sequence more, at once: the next request is judged with it."""
        self.num_open += 1
        try:
            yield
        finally:
            self.num_open -= 1

    def _admit(self, request: generate_pb2.GenerateRequest) -> str:
        """The numerics class of the tokens to come. Raises FleetError for what cannot be honoured."""
        if self.draining:
            raise FleetError(Code.DRAINING, "the worker is draining")
        self._require_room(request)
        numerics = self._numerics()
        if not numerics:
            raise FleetError(Code.NOT_READY, "the worker has no experts to ask yet")
        if request.numerics and request.numerics != numerics:
            raise FleetError(
                Code.WRONG_NUMERICS, f"the sequence was begun in {request.numerics}, this worker computes {numerics}"
            )
        check_request(request, self._limits)
        return numerics

    def _require_room(self, request: generate_pb2.GenerateRequest) -> None:
        """Raises FleetError OVERLOADED; what a worker had taken before must go on whatever waits here."""
        most = self._limits.max_open
        if most is None or self.num_open < most or request.taken_before or request.generated_ids:
            return
        self.num_refused += 1
        raise FleetError(Code.OVERLOADED, f"{self._seat} has {self.num_open} requests, the limit is {most}")


def check_request(request: generate_pb2.GenerateRequest, limits: Limits) -> None:
    """Raises FleetError: BAD_REQUEST, UNSUPPORTED or CONTEXT_LENGTH, naming field, value and limit."""
    if request.constraint:
        raise FleetError(Code.UNSUPPORTED, "constraint: this worker has no grammar support")
    if not request.prompt_ids:
        raise FleetError(Code.BAD_REQUEST, "prompt_ids: empty; at least one token is needed")
    num_prompt, num_done = len(request.prompt_ids), len(request.generated_ids)
    if num_done and request.generated_ids[-1] in request.stop_token_ids:
        raise FleetError(Code.BAD_REQUEST, f"generated_ids: end with stop id {request.generated_ids[-1]} already")
    if request.max_tokens <= num_done:
        raise FleetError(Code.BAD_REQUEST, f"max_tokens: {request.max_tokens}, of which {num_done} are done already")
    if num_prompt + request.max_tokens > limits.max_model_len:
        raise FleetError(
            Code.CONTEXT_LENGTH,
            f"{num_prompt} prompt tokens and max_tokens {request.max_tokens} exceed {limits.max_model_len} positions",
        )
    if request.num_top_logprobs > MAX_TOP_LOGPROBS:
        raise FleetError(
            Code.BAD_REQUEST, f"num_top_logprobs: {request.num_top_logprobs}; the limit is {MAX_TOP_LOGPROBS}"
        )
    if request.priority > MAX_PRIORITY:
        raise FleetError(Code.BAD_REQUEST, f"priority: {request.priority}; the limit is {MAX_PRIORITY}")
    if not 0 <= request.deadline_s <= MAX_DEADLINE_S:
        raise FleetError(
            Code.BAD_REQUEST, f"deadline_s: {request.deadline_s:g} is not within 0 to {MAX_DEADLINE_S:g} seconds"
        )
    for name in ("prompt_ids", "generated_ids", "stop_token_ids"):
        _check_ids(name, getattr(request, name), limits.vocab_size)
    _check_ids("logit_bias", request.sampling.logit_bias.keys(), limits.vocab_size)
    _check_sampling(request.sampling)
    if request.HasField("thinking_budget"):
        _check_budget(request.thinking_budget, limits.vocab_size)


def make_sequence(request: generate_pb2.GenerateRequest, publish: Callable[[Update], None]) -> Sequence:
    """A checked request as the engine's own value."""
    budget = None
    if request.HasField("thinking_budget"):
        wire = request.thinking_budget
        until = frozenset(wire.until_ids)
        budget = ThinkingBudget(wire.max_tokens, wire.start_id, wire.end_id, tuple(wire.forced_ids), until, wire.begun)
    return Sequence(
        request_id=request.request_id,
        tokens=[*request.prompt_ids, *request.generated_ids],
        num_prompt=len(request.prompt_ids),
        max_tokens=request.max_tokens,
        sampling=_sampling(request.sampling),
        publish=publish,
        stop_ids=frozenset(request.stop_token_ids),
        budget=budget,
        num_top_logprobs=request.num_top_logprobs if request.logprobs else None,
        salt=request.cache_salt,
        priority=request.priority,
        deadline=time.monotonic() + request.deadline_s if request.deadline_s > 0 else None,
    )


def _sampling(wire: generate_pb2.Sampling) -> SamplingParams:
    return SamplingParams(
        seed=wire.seed,
        temperature=wire.temperature,
        top_p=wire.top_p,
        top_k=wire.top_k,
        min_p=wire.min_p,
        presence_penalty=wire.presence_penalty,
        frequency_penalty=wire.frequency_penalty,
        repetition_penalty=wire.repetition_penalty or 1.0,
        logit_bias=dict(wire.logit_bias),
    )


def _check_sampling(wire: generate_pb2.Sampling) -> None:
    sampling = _sampling(wire)
    ranges = {
        **{name: (getattr(sampling, name), *limits) for name, limits in SAMPLING_RANGES.items()},
        "presence_penalty": (sampling.presence_penalty, -2.0, 2.0),
        "frequency_penalty": (sampling.frequency_penalty, -2.0, 2.0),
        **{f"logit_bias[{key}]": (value, -100.0, 100.0) for key, value in sampling.logit_bias.items()},
    }
    for name, (value, low, high) in ranges.items():
        if not (math.isfinite(value) and low <= value <= high):
            raise FleetError(Code.BAD_REQUEST, f"{name}: {value:g} is not within {low:g} to {high:g}")


def _check_budget(budget: generate_pb2.ThinkingBudget, vocab_size: int) -> None:
    _check_ids("thinking_budget", (budget.start_id, budget.end_id, *budget.forced_ids, *budget.until_ids), vocab_size)
    if budget.end_id not in budget.forced_ids:
        raise FleetError(Code.BAD_REQUEST, f"thinking_budget: forced_ids do not contain end_id {budget.end_id}")
    if budget.start_id == budget.end_id or budget.start_id in budget.forced_ids:
        raise FleetError(
            Code.BAD_REQUEST, f"thinking_budget: start_id {budget.start_id} is end_id or one of forced_ids"
        )


def _check_ids(name: str, ids: object, vocab_size: int) -> None:
    largest = max(ids, default=0)  # type: ignore[call-overload]
    if largest >= vocab_size:
        raise FleetError(Code.BAD_REQUEST, f"{name}: token id {largest} is not below {vocab_size}")


async def _next_update(updates: "asyncio.Queue[Update]", deadline: float | None) -> Update:
    """Raises FleetError DEADLINE when nothing comes until then, whatever the engine waits for meanwhile."""
    try:
        async with asyncio.timeout(deadline and deadline - time.monotonic()):
            return await updates.get()
    except TimeoutError:
        raise FleetError(Code.DEADLINE, "the request's deadline passed") from None


def _hand_over(loop: asyncio.AbstractEventLoop, updates: "asyncio.Queue[Update]", update: Update) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(updates.put_nowait, update)


def _fill_reply(
    reply: generate_pb2.GenerateReply, tokens: list[TokenOut], reason: str, logprobs: bool
) -> generate_pb2.GenerateReply:
    reply.token_ids.extend(token.token_id for token in tokens)
    reply.finish_reason = reason
    if logprobs:
        for token in tokens:
            ids, values = zip(*token.top, strict=True) if token.top else ((), ())
            reply.logprobs.add(logprob=token.logprob, top_ids=ids, top_logprobs=values)
    return reply
