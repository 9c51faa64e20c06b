"""Two chats through the public API with the official client, one whole and one streamed, and how fast they came.

Knows nothing of the fleet but its URL.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import openai


@dataclass(frozen=True)
class Chat:
    """One answer as a client saw it."""

    question: str
    reasoning: str
    answer: str
    num_tokens: int
    took_s: float

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.took_s


class Client:
    def __init__(self, url: str, max_tokens: int) -> None:
        self._client = openai.OpenAI(
            base_url=f"{url}/v1", api_key="none", http_client=openai.DefaultHttpxClient(trust_env=False)
        )
        self._model = self._client.models.list().data[0].id
        self._max_tokens = max_tokens

    def ask(self, question: str) -> Chat:
        began = time.monotonic()
        reply = self._client.chat.completions.create(
            model=self._model, messages=[{"role": "user", "content": question}], max_tokens=self._max_tokens
        )
        message, usage = reply.choices[0].message, reply.usage
        assert usage is not None
        reasoning = getattr(message, "reasoning_content", None) or ""
        return Chat(question, reasoning, message.content or "", usage.completion_tokens, time.monotonic() - began)

    def ask_streaming(self, question: str) -> Chat:
        began = time.monotonic()
        pieces = list(self._pieces(question))
        took_s = time.monotonic() - began
        reasoning = "".join(reasoning for reasoning, _, _ in pieces)
        answer = "".join(answer for _, answer, _ in pieces)
        return Chat(question, reasoning, answer, sum(tokens for _, _, tokens in pieces), took_s)

    def close(self) -> None:
        self._client.close()

    def _pieces(self, question: str) -> Iterator[tuple[str, str, int]]:
        """(reasoning, content, completion tokens) of every event; the tokens come with the last one."""
        stream = self._client.chat.completions.create(
            model=self._model,
            messages=[{"role": "user", "content": question}],
            max_tokens=self._max_tokens,
            stream=True,
            stream_options={"include_usage": True},
        )
        for event in stream:
            tokens = event.usage.completion_tokens if event.usage else 0
            delta = event.choices[0].delta if event.choices else None
            yield getattr(delta, "reasoning_content", None) or "", (delta and delta.content) or "", tokens
