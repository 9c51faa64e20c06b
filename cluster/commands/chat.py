"""``expertfleet chat``: a conversation in the terminal, thinking dimmed.

Knows nothing of the fleet but its API. A line is a turn; ``/exit`` or the end of the input ends it, ``/clear`` forgets
the conversation, Ctrl-C ends an answer.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TextIO

import httpx

from ..errors import ClusterError
from .gateway_process import error_message

_DIM, _PLAIN = "\033[2m", "\033[0m"


@dataclass
class Chat:
    """One conversation with one model."""

    url: str
    model: str
    out: TextIO
    dims: bool
    api_key: str = ""
    max_tokens: int | None = None
    messages: list[dict[str, Any]] = field(default_factory=list)

    def converse(self, lines: Iterator[str]) -> None:
        for line in lines:
            text = line.strip()
            if text == "/exit":
                return
            if text == "/clear":
                self.messages.clear()
            elif text:
                self.turn(text)

    def turn(self, text: str) -> None:
        """One question and its answer; both enter the conversation once the answer is there."""
        asked = [*self.messages, {"role": "user", "content": text}]
        answer = ""
        try:
            for kind, piece in self._stream(asked):
                self._write(kind, piece)
                answer += piece if kind == "content" else ""
        except KeyboardInterrupt:
            self.out.write(" (ended)")
        self._write("", "\n")
        self.messages = [*asked, {"role": "assistant", "content": answer}]

    def _stream(self, messages: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
        body: dict[str, Any] = {"model": self.model, "messages": messages, "stream": True}
        if self.max_tokens is not None:
            body["max_tokens"] = self.max_tokens
        timeout = httpx.Timeout(10.0, read=None)
        try:
            with (
                httpx.Client(trust_env=False, timeout=timeout) as client,
                client.stream("POST", f"{self.url}/v1/chat/completions", json=body, headers=self._headers()) as reply,
            ):
                if reply.status_code != 200:
                    reply.read()
                    raise ClusterError(f"{self.url}: {error_message(reply.text)}")
                yield from _pieces(reply.iter_lines())
        except httpx.TransportError as error:
            raise ClusterError(f"--url: {self.url} does not answer ({error}); is the fleet running there?") from error

    def _write(self, kind: str, piece: str) -> None:
        dimmed = self.dims and kind == "reasoning_content"
        self.out.write(f"{_DIM}{piece}{_PLAIN}" if dimmed else piece)
        self.out.flush()

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}


def _pieces(lines: Iterator[str]) -> Iterator[tuple[str, str]]:
    """(field, text) of every delta of an event stream."""
    previous = ""
    for line in lines:
        if not line.startswith("data: ") or line == "data: [DONE]":
            continue
        event = json.loads(line.removeprefix("data: "))
        if "error" in event:
            raise ClusterError(f"the answer broke off: {event['error'].get('message', event['error'])}")
        for choice in event.get("choices", ()):
            for kind in ("reasoning_content", "content"):
                piece = choice.get("delta", {}).get(kind)
                if piece:
                    if previous == "reasoning_content" and kind == "content":
                        yield "", "\n"
                    previous = kind
                    yield kind, piece


def first_model(url: str, api_key: str) -> str:
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        with httpx.Client(trust_env=False, timeout=10.0) as client:
            reply = client.get(f"{url}/v1/models", headers=headers)
        if reply.status_code != 200:
            raise ClusterError(f"{url}/v1/models: {error_message(reply.text)}")
        return str(reply.json()["data"][0]["id"])
    except httpx.TransportError as error:
        raise ClusterError(f"--url: {url} does not answer ({error}); is the fleet running there?") from error
    except (ValueError, KeyError, IndexError, httpx.InvalidURL) as error:
        raise ClusterError(f"--url: {url} is not a fleet's address: {error}") from error


def typed_lines(prompt: str = "you> ") -> Iterator[str]:
    """Lines of standard input, asked for when it is a terminal."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    import readline  # noqa: F401  NOTE: gives input() history and editing

    while True:
        try:
            yield input(prompt)
        except (EOFError, KeyboardInterrupt):
            return
