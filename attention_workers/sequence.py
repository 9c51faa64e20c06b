"""One sequence: its tokens, where it stands, and when it ends.

Knows nothing of tensors, batches or the wire.
"""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from ..proto.errors import FleetError

_arrivals = itertools.count()


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen; the neutral values are the defaults."""

    seed: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ThinkingBudget:
    """Once ``max_tokens`` follow ``start_id`` without ``end_id``, all ``forced_ids`` are emitted instead.

    If it has ``begun``, ``start_id`` is in the prompt and the output's first token counts. After any of ``until_ids``
    nothing is thinking any more.
    """

    max_tokens: int
    start_id: int
    end_id: int
    forced_ids: tuple[int, ...]
    until_ids: frozenset[int] = frozenset()
    begun: bool = False


class _Thinking:
    """The thinking section that an output stands in, read one token at a time."""

    def __init__(self, budget: ThinkingBudget) -> None:
        self.num_read = 0
        self._budget = budget
        self._since = 0 if budget.begun else None
        self._is_over = False

    def read(self, token_id: int) -> None:
        """An opening inside a section opens nothing, and a budget that is spent stays so until all is emitted."""
        is_last_forced = self._num_over == len(self._budget.forced_ids) - 1
        is_forced = self.forced() is not None
        self.num_read += 1
        if is_forced:
            self._since = None if is_last_forced else self._since
        elif token_id in self._budget.until_ids:
            self._since, self._is_over = None, True
        elif token_id == self._budget.end_id:
            self._since = None
        elif token_id == self._budget.start_id and self._since is None and not self._is_over:
            self._since = self.num_read

    def forced(self) -> int | None:
        return self._budget.forced_ids[self._num_over] if self._num_over >= 0 else None

    @property
    def _num_over(self) -> int:
        """How many tokens the section is beyond its budget; negative before that, and outside any section."""
        return -1 if self._since is None else self.num_read - self._since - self._budget.max_tokens


@dataclass(frozen=True, slots=True)
class TokenOut:
    """One generated token; ``top`` are (id, logprob) pairs, best first."""

    token_id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]


FinishReason = Literal["", "stop", "length"]
Update = tuple[list[TokenOut], FinishReason] | FleetError


@dataclass(slots=True, eq=False)
class Sequence:
    """Tokens are prompt then output; ``num_cached`` of them have their latents in the cache."""

    request_id: str
    tokens: list[int]
    num_prompt: int
    max_tokens: int
    sampling: SamplingParams
    publish: Callable[[Update], None]
    stop_ids: frozenset[int] = frozenset()
    budget: ThinkingBudget | None = None
    num_top_logprobs: int | None = None
    priority: int = 0
    deadline: float | None = None
    arrival: int = field(default_factory=lambda: next(_arrivals))
    salt: str = ""
    num_cached: int = 0
    num_reused: int | None = None  # prompt tokens whose latents were there already when it was first admitted
    pages: list[int] = field(default_factory=list)
    page_hashes: list[bytes] = field(default_factory=list)  # of its first pages
    numerics_generation: int | None = None  # of the bits that its pages hold; None where they may be mixed
    in_flight: bool = False
    cancelled: bool = False
    fault: FleetError | None = None  # a row of the step under way has no output
    _thinking: _Thinking | None = None  # as far as the budget has read the output

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - self.num_prompt

    @property
    def num_to_compute(self) -> int:
        return len(self.tokens) - self.num_cached

    @property
    def expired(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline

    def forced_token(self) -> int | None:
        """The token that the thinking budget dictates next, if any; a function of the tokens alone."""
        if self.budget is None:
            return None
        if self._thinking is None:
            self._thinking = _Thinking(self.budget)
        for index in range(self.num_prompt + self._thinking.num_read, len(self.tokens)):
            self._thinking.read(self.tokens[index])
        return self._thinking.forced()

    def append(self, token_id: int) -> FinishReason:
        """Takes a generated token; why the sequence ends with it, or "" if it goes on."""
        self.tokens.append(token_id)
        if token_id in self.stop_ids:
            return "stop"
        return "length" if self.num_generated >= self.max_tokens else ""
