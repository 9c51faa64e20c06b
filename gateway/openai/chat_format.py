"""Events of a chat as OpenAI's JSON: chunks of a stream, or one whole object.

Knows nothing of connections. Both are made from the same events, so they say the same.
"""

from collections.abc import Sequence
from typing import Any

from ..engine.prepared_request import PreparedRequest
from ..events.answer import Answer, Event
from ..events.served_model import Model
from .logprobs import chat_logprobs
from .schemas import ChatRequest
from .tool_ids import call_id
from .usage import usage

_TEXT_KEYS = {"content": "content", "reasoning": "reasoning_content"}


class ChatFormat:
    def __init__(self, job: PreparedRequest[ChatRequest], answers: Sequence[Answer], model: Model) -> None:
        self._job = job
        self._answers = answers
        self._model = model

    def opening(self) -> list[dict[str, Any]]:
        """One chunk a choice with the role, before any token."""
        deltas = [{"role": "assistant", "content": ""} for _ in self._answers]
        chunks = [self._chunk([self._choice(index, delta=delta)]) for index, delta in enumerate(deltas)]
        if self._job.request.return_token_ids:
            chunks[0]["prompt_token_ids"] = self._job.prompts[0]
        return chunks

    def chunk(self, index: int, event: Event) -> dict[str, Any] | None:
        """None for an event that this client would see nothing of."""
        request = self._job.request
        wants_tokens = request.return_token_ids or request.num_top_logprobs is not None
        if event.kind is None and event.finish_reason is None and not (wants_tokens and event.token_ids):
            return None
        choice = self._choice(index, delta=self._delta(event))
        choice["finish_reason"] = event.finish_reason
        choice |= self._token_info(event.token_ids, event.logprobs)
        return self._chunk([choice])

    def closing(self) -> list[dict[str, Any]]:
        if not self._job.request.include_usage:
            return []
        return [self._chunk([]) | {"usage": usage(self._job, self._answers)}]

    def whole(self, events: Sequence[Sequence[Event]]) -> dict[str, Any]:
        body = self._head("chat.completion")
        body["choices"] = [self._whole_choice(index, own) for index, own in enumerate(events)]
        body["usage"] = usage(self._job, self._answers)
        if self._job.request.return_token_ids:
            body["prompt_token_ids"] = self._job.prompts[0]
        return body

    def _whole_choice(self, index: int, events: Sequence[Event]) -> dict[str, Any]:
        choice = self._choice(index, message=self._message(events))
        choice["finish_reason"] = self._answers[index].finish_reason
        token_ids = [token_id for event in events for token_id in event.token_ids]
        return choice | self._token_info(token_ids, [entry for event in events for entry in event.logprobs])

    def _message(self, events: Sequence[Event]) -> dict[str, Any]:
        calls = self._calls(events)
        content = _joined(events, "content")
        return {
            "role": "assistant",
            "content": content if content or not calls else None,
            "reasoning_content": _joined(events, "reasoning") or None,
            "refusal": None,
            "tool_calls": calls or None,
        }

    def _calls(self, events: Sequence[Event]) -> list[dict[str, Any]]:
        calls: list[dict[str, Any]] = []
        for event in events:
            if event.kind == "call":
                function = {"name": event.text, "arguments": ""}
                calls.append({"id": self._call_id(event), "type": "function", "function": function})
            elif event.kind == "arguments":
                calls[event.call]["function"]["arguments"] += event.text
        return calls

    def _delta(self, event: Event) -> dict[str, Any]:
        if event.kind is None:
            return {}
        if event.kind == "call":
            function = {"name": event.text, "arguments": ""}
            return {
                "tool_calls": [
                    {"index": event.call, "id": self._call_id(event), "type": "function", "function": function}
                ]
            }
        if event.kind == "arguments":
            return {"tool_calls": [{"index": event.call, "function": {"arguments": event.text}}]}
        return {_TEXT_KEYS[event.kind]: event.text}

    def _call_id(self, event: Event) -> str:
        return call_id(event.text, self._job.first_call_number + event.call)

    def _choice(self, index: int, **content: Any) -> dict[str, Any]:
        return {"index": index, **content, "logprobs": None, "finish_reason": None}

    def _token_info(self, token_ids: list[int], logprobs: list[Any]) -> dict[str, Any]:
        info: dict[str, Any] = {}
        if self._job.request.num_top_logprobs is not None:
            info["logprobs"] = {"content": chat_logprobs(token_ids, logprobs, self._model), "refusal": None}
        if self._job.request.return_token_ids:
            info["token_ids"] = token_ids
        return info

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        chunk = self._head("chat.completion.chunk") | {"choices": choices}
        if self._job.request.include_usage:
            every = self._job.request.continuous_usage
            chunk["usage"] = usage(self._job, self._answers) if every else None
        return chunk

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self._job.response_id,
            "object": kind,
            "created": self._job.created,
            "model": self._job.request.model,
            "system_fingerprint": next((answer.numerics for answer in self._answers if answer.numerics), None),
        }


def _joined(events: Sequence[Event], kind: str) -> str:
    return "".join(event.text for event in events if event.kind == kind)
