"""One request made ready to run: its sequences, and what reads their tokens.

Knows nothing of HTTP or workers. A chat has ``n`` sequences of one prompt, a completion ``n`` for each of its prompts.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from ...proto.generated import generate_pb2 as pb
from ..events.answer import Answer, Ending, Reader


class ApiRequest(Protocol):
    """What the engine reads of a request, whatever its API."""

    @property
    def model(self) -> str: ...

    @property
    def num_top_logprobs(self) -> int | None: ...


Request_co = TypeVar("Request_co", bound=ApiRequest, covariant=True)


@dataclass(frozen=True)
class PreparedRequest(Generic[Request_co]):
    request: Request_co
    request_id: str
    response_id: str
    # One an answer, in the order of choices.
    sequences: tuple[pb.GenerateRequest, ...]
    ending: Ending
    new_reader: Callable[[], Reader]
    # Prompts in order; choice i answers prompt i // n.
    prompts: tuple[list[int], ...]
    ignored: tuple[str, ...] = ()
    # Ids of tool calls are counted from here.
    first_call_number: int = 0
    created: int = field(default_factory=lambda: int(time.time()))

    def new_answers(self) -> list[Answer]:
        wants_logprobs = self.request.num_top_logprobs is not None
        return [Answer(self.new_reader(), self.ending, wants_logprobs=wants_logprobs) for _ in self.sequences]
