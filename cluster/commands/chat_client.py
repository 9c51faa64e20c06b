"""Client of the chat API: one question in, the pieces of one answer out.

Knows nothing of terminals and of conversations. Raises ClusterError, one line with the remedy, for whatever goes wrong.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from ..errors import ClusterError
from .gateway_process import error_message


@dataclass
class Answer:
    """What has arrived of one answer."""

    reasoning: str = ""
    content: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str | None = None
    num_tokens: int | None = None  # None until the API has counted them

    @property
    def message(self) -> dict[str, Any]:
        """The answer as a later turn sends it back, thinking included."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        if self.calls:
            message["tool_calls"] = self.calls
        return message

    def take(self, event: dict[str, Any]) -> Iterator[tuple[str, str]]:
        """Adds one event of the stream; yields (``reasoning`` or ``content``, text) that is to be shown."""
        if "error" in event:
            raise ClusterError(f"the answer broke off: {event['error'].get('message', event['error'])}")
        if event.get("usage"):
            self.num_tokens = event["usage"].get("completion_tokens")
        for choice in event.get("choices", ()):
            delta = choice.get("delta") or {}
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
            self._add_calls(delta.get("tool_calls") or ())
            if text := delta.get("reasoning_content"):
                self.reasoning += text
                yield "reasoning", text
            if text := delta.get("content"):
                self.content += text
                yield "content", text

    def _add_calls(self, deltas: list[dict[str, Any]] | tuple[()]) -> None:
        for delta in deltas:
            while len(self.calls) <= delta["index"]:
                self.calls.append({"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
            call, function = self.calls[delta["index"]], delta.get("function") or {}
            call["id"] = delta.get("id") or call["id"]
            call["function"]["name"] += function.get("name") or ""
            call["function"]["arguments"] += function.get("arguments") or ""


class ChatClient:
    def __init__(self, url: str, api_key: str = "") -> None:
        self.url = url
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    def first_model(self) -> str:
        """The name of the first model that is served."""
        try:
            with self._open(httpx.Timeout(10.0)) as client:
                reply = client.get(f"{self.url}/v1/models")
            if reply.status_code != 200:
                raise ClusterError(f"{self.url}/v1/models: {error_message(reply.text)}")
            return str(reply.json()["data"][0]["id"])
        except httpx.TransportError as error:
            raise self._unreached(error) from error
        except (ValueError, KeyError, IndexError, TypeError, httpx.InvalidURL) as error:
            raise ClusterError(f"--url: {self.url} is not a fleet's address: {error}") from error

    def ask(self, body: dict[str, Any], answer: Answer) -> Iterator[tuple[str, str]]:
        """Streams the answer to ``body`` into ``answer``; yields what is to be shown, as it arrives."""
        body = body | {"stream": True, "stream_options": {"include_usage": True}}
        try:
            with (
                self._open(httpx.Timeout(10.0, read=None)) as client,
                client.stream("POST", f"{self.url}/v1/chat/completions", json=body) as reply,
            ):
                if reply.status_code != 200:
                    reply.read()
                    raise ClusterError(error_message(reply.text))
                for line in reply.iter_lines():
                    if line.startswith("data: ") and line != "data: [DONE]":
                        yield from answer.take(json.loads(line.removeprefix("data: ")))
        except httpx.TransportError as error:
            raise self._unreached(error) from error
        if answer.finish_reason is None:
            raise ClusterError("the answer broke off: the connection ended before the answer did")

    def _open(self, timeout: httpx.Timeout) -> httpx.Client:
        return httpx.Client(trust_env=False, timeout=timeout, headers=self._headers)

    def _unreached(self, error: Exception) -> ClusterError:
        return ClusterError(f"--url: {self.url} does not answer ({error}); is the fleet running there?")
