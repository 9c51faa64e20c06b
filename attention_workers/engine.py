"""The engine: the one thread that owns torch and steps every forward pass.

Knows nothing of the wire and of who computes experts. A forward pass is a coroutine that stops at each layer's experts;
the engine resumes it when they have answered, and steps another meanwhile. The thread waits in its reactor, which also reads
the lanes. 1. take messages; 2. start a micro-batch while there is room and work; 3. resume what is ready; 4. sample,
publish, repeat.
"""

import logging
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass

import numpy as np
import torch

from ..proto.errors import Code, FleetError
from ..router.dispatch.layer_dispatch import LayerDispatch
from ..transport.reactor import Reactor
from .prefill_budget import PrefillBudget
from .sampler import sample
from .scheduler import Chunk, Scheduler
from .sequence import Sequence

logger = logging.getLogger(__name__)

Forward = Callable[[list[Chunk]], Coroutine[LayerDispatch, None, torch.Tensor]]


@dataclass(slots=True)
class Counters:
    """What the engine has done since it started; written by its thread alone."""

    steps: int = 0
    tokens_computed: int = 0
    tokens_generated: int = 0
    sequences_stepped: int = 0
    max_sequences_in_step: int = 0
    failed_sequences: int = 0


@dataclass(slots=True, eq=False)
class MicroBatch:
    """One micro-batch under way; ``is_decode_only`` if it has one token for each answer and no prompt is read beside it."""

    chunks: list[Chunk]
    forward: Coroutine[LayerDispatch, None, torch.Tensor]
    num_prompt_tokens: int  # of new prompts,
    beside_answers: bool  # if answers were under way
    is_decode_only: bool
    started_at: float


class Engine:
    """``forward`` maps chunks to logits [S, V] fp32, one row for each chunk that samples, in order."""

    def __init__(
        self,
        scheduler: Scheduler,
        forward: Forward,
        pace: PrefillBudget,
        max_micro_batches: int,
        threads: int,
        spin_s: float = 0.0,
    ) -> None:
        self.counters = Counters()
        self._scheduler = scheduler
        self._prefill_budget = pace
        self._forward = forward
        self._max_micro_batches = max_micro_batches
        self._threads = threads
        self.reactor = Reactor(spin_s)
        self._micro_batches: set[MicroBatch] = set()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def add(self, sequence: Sequence) -> None:
        """From any thread; the sequence's ``publish`` gets its tokens, or one error."""
        self.reactor.post(self._add, sequence)

    def cancel(self, sequence: Sequence) -> None:
        """From any thread: frees the sequence now, or when the step it is part of comes back."""
        self.reactor.post(self._cancel, sequence)

    def stop(self) -> None:
        """Ends the thread once every running forward pass has come back; sequences left get DRAINING."""
        self.reactor.post(self._stop)
        self._thread.join()

    @property
    def num_sequences(self) -> int:
        return self._scheduler.num_running + self._scheduler.num_waiting

    def _run(self) -> None:
        torch.set_num_threads(self._threads)
        with torch.inference_mode():
            while not self._stopping or self._micro_batches:
                self.reactor.step()
                self._launch()
        for sequence in list(self._scheduler.sequences()):
            sequence.publish(FleetError(Code.DRAINING, "the worker was stopped"))

    def _stop(self) -> None:
        self._stopping = True

    def _launch(self) -> None:
        while not self._stopping and len(self._micro_batches) < self._max_micro_batches:
            for sequence in [each for each in self._scheduler.sequences() if each.expired and not each.in_flight]:
                self._fail(sequence, FleetError(Code.DEADLINE, "the request's deadline passed"))
            chunks = self._scheduler.schedule(self._prefill_budget.limit)
            if not chunks:
                return
            self._count(chunks)
            batch = self._micro_batch(chunks)
            self._micro_batches.add(batch)
            self._step(batch)

    def _micro_batch(self, chunks: list[Chunk]) -> MicroBatch:
        num_prompt_tokens = sum(chunk.count for chunk in chunks if not chunk.sequence.num_generated)
        if num_prompt_tokens:
            for other in self._micro_batches:
                other.is_decode_only = False
        beside = num_prompt_tokens or any(other.num_prompt_tokens for other in self._micro_batches)
        is_decode_only = not beside and all(chunk.count == 1 for chunk in chunks)
        beside_answers = self._scheduler.answering
        return MicroBatch(
            chunks, self._forward(chunks), num_prompt_tokens, beside_answers, is_decode_only, time.monotonic()
        )

    def _step(self, batch: MicroBatch) -> None:
        try:
            dispatch = batch.forward.send(None)
        except StopIteration as result:
            self._complete(batch, result.value)
        except FleetError as error:
            self._abort(batch, error)
        except Exception:
            logger.exception("a forward step of %d sequences failed", len(batch.chunks))
            self._abort(batch, FleetError(Code.INTERNAL, "a forward step failed; see the worker's log"))
        else:
            dispatch.when_done(lambda: self.reactor.post(self._step, batch))

    def _complete(self, batch: MicroBatch, logits: torch.Tensor) -> None:
        self._micro_batches.discard(batch)
        seconds = time.monotonic() - batch.started_at
        if batch.is_decode_only:
            self._prefill_budget.took_decode_only(seconds)
        elif batch.num_prompt_tokens:
            self._prefill_budget.took(batch.num_prompt_tokens, seconds, batch.beside_answers)
        rows = iter(logits)
        for chunk in batch.chunks:
            self._scheduler.complete(chunk)
            row = next(rows) if chunk.samples else None
            if chunk.sequence.cancelled:
                self._scheduler.remove(chunk.sequence)
            elif chunk.sequence.fault is not None:
                self._fail(chunk.sequence, chunk.sequence.fault)
            elif row is not None:
                self._advance(chunk.sequence, row)
        self._keep_going()

    def _advance(self, sequence: Sequence, logits: torch.Tensor) -> None:
        try:
            if not np.isfinite(logits.numpy()).all():
                raise FleetError(Code.NON_FINITE, "the sequence's logits are not finite")
            token = sample(logits, sequence)
        except FleetError as error:
            self._fail(sequence, error)
            return
        except Exception:
            logger.exception("sampling for %s failed", sequence.request_id)
            self._fail(sequence, FleetError(Code.INTERNAL, "sampling failed; see the worker's log"))
            return
        reason = sequence.append(token.token_id)
        self.counters.tokens_generated += 1
        if reason:
            self._scheduler.remove(sequence)
        sequence.publish(([token], reason))

    def _abort(self, batch: MicroBatch, error: FleetError) -> None:
        self._micro_batches.discard(batch)
        for chunk in batch.chunks:
            chunk.sequence.in_flight = False
            self._fail(chunk.sequence, error)
        self._keep_going()

    def _fail(self, sequence: Sequence, error: FleetError) -> None:
        self._scheduler.remove(sequence, spoilt=error.code is Code.NON_FINITE)
        self.counters.failed_sequences += 1
        sequence.publish(error)

    def _keep_going(self) -> None:
        """The next turn of the loop must come even when nobody sends a message."""
        self.reactor.post(_nothing)

    def _add(self, sequence: Sequence) -> None:
        if self._stopping:
            sequence.publish(FleetError(Code.DRAINING, "the worker is stopping"))
        else:
            self._scheduler.add(sequence)

    def _cancel(self, sequence: Sequence) -> None:
        sequence.cancelled = True
        if not sequence.in_flight:
            self._scheduler.remove(sequence)

    def _count(self, chunks: list[Chunk]) -> None:
        counters = self.counters
        counters.steps += 1
        counters.tokens_computed += sum(chunk.count for chunk in chunks)
        counters.sequences_stepped += len(chunks)
        counters.max_sequences_in_step = max(counters.max_sequences_in_step, len(chunks))


def _nothing() -> None:
    return None
