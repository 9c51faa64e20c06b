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
    """Once ``max_tokens`` follow ``start_id`` without ``end_id``, all ``forced_ids`` are emitted instead."""

    max_tokens: int
    start_id: int
    end_id: int
    forced_ids: tuple[int, ...]


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
    page_names: list[bytes] = field(default_factory=list)  # of its first pages
    bits: int | None = None  # the number of the bits that its pages hold; None where they may be mixed
    in_flight: bool = False
    cancelled: bool = False
    fault: FleetError | None = None  # a row of the step under way has no output

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
        budget = self.budget
        if budget is None:
            return None
        output = self.tokens[self.num_prompt :]
        opened = _last_index(output, budget.start_id)
        if opened is None:
            return None
        spent = opened + 1 + budget.max_tokens
        if budget.end_id in output[opened + 1 : spent]:
            return None
        over = len(output) - spent
        return budget.forced_ids[over] if 0 <= over < len(budget.forced_ids) else None

    def append(self, token_id: int) -> FinishReason:
        """Takes a generated token; why the sequence ends with it, or "" if it goes on."""
        self.tokens.append(token_id)
        if token_id in self.stop_ids:
            return "stop"
        return "length" if self.num_generated >= self.max_tokens else ""


def _last_index(tokens: list[int], token_id: int) -> int | None:
    for index in range(len(tokens) - 1, -1, -1):
        if tokens[index] == token_id:
            return index
    return None
