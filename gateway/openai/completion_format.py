"""Events of a completion as OpenAI's JSON: chunks of a stream, or one whole object.

Knows nothing of connections. Both are made from the same events, so they say the same.
"""

from collections.abc import Sequence
from typing import Any

from ..engine.prepared_request import PreparedRequest
from ..events.answer import Answer, Event
from ..events.served_model import Model
from .logprobs import completion_logprobs
from .schemas import CompletionRequest
from .usage import usage


class CompletionFormat:
    def __init__(self, job: PreparedRequest[CompletionRequest], answers: Sequence[Answer], model: Model) -> None:
        self._job = job
        self._answers = answers
        self._model = model
        self._offsets = [0] * len(answers)
        self._is_first = [True] * len(answers)

    def opening(self) -> list[dict[str, Any]]:
        return []

    def chunk(self, index: int, event: Event) -> dict[str, Any] | None:
        """None for an event that this client would see nothing of."""
        request = self._job.request
        wants_tokens = request.return_token_ids or request.num_top_logprobs is not None
        if event.kind is None and event.finish_reason is None and not (wants_tokens and event.token_ids):
            return None
        choice = self._choice(index, [event])
        if request.return_token_ids and not self._is_first[index]:
            del choice["prompt_token_ids"]
        self._is_first[index] = False
        chunk = self._head() | {"choices": [choice]}
        if request.include_usage:
            chunk["usage"] = usage(self._job, self._answers) if request.continuous_usage else None
        return chunk

    def closing(self) -> list[dict[str, Any]]:
        if not self._job.request.include_usage:
            return []
        return [self._head() | {"choices": [], "usage": usage(self._job, self._answers)}]

    def whole(self, events: Sequence[Sequence[Event]]) -> dict[str, Any]:
        choices = [self._choice(index, own) for index, own in enumerate(events)]
        return self._head() | {"choices": choices, "usage": usage(self._job, self._answers)}

    def _choice(self, index: int, events: Sequence[Event]) -> dict[str, Any]:
        request = self._job.request
        token_ids = [token_id for event in events for token_id in event.token_ids]
        choice: dict[str, Any] = {"index": index, "text": "".join(event.text for event in events), "logprobs": None}
        choice["finish_reason"] = events[-1].finish_reason if events else None
        if request.num_top_logprobs is not None:
            entries = [entry for event in events for entry in event.logprobs]
            offset = self._offsets[index]
            choice["logprobs"], self._offsets[index] = completion_logprobs(token_ids, entries, self._model, offset)
        if request.return_token_ids:
            choice["prompt_token_ids"] = self._job.prompts[index // request.n]
            choice["token_ids"] = token_ids
        return choice

    def _head(self) -> dict[str, Any]:
        return {
            "id": self._job.response_id,
            "object": "text_completion",
            "created": self._job.created,
            "model": self._job.request.model,
            "system_fingerprint": next((answer.numerics for answer in self._answers if answer.numerics), None),
        }
