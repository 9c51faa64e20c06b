"""The reader for completions: tokens to text, with no reasoning and no tool calls.

Knows nothing of stop strings. Control tokens are left out unless asked for; the markers of reasoning and tool calls are
always written, as they are part of the text that the model was trained to write.
"""

from collections.abc import Callable

from .output_parser import Decoder
from .pieces import Piece


class PlainText:
    num_reasoning_tokens = 0
    num_calls = 0
    num_finished_calls = 0
    num_invalid_calls = 0

    def __init__(self, decoder: Decoder, special_text: Callable[[int], str | None]) -> None:
        """``special_text`` gives a special token's text ("" to leave it out), None for ordinary tokens."""
        self._decoder = decoder
        self._special_text = special_text

    def push(self, token_id: int) -> list[Piece]:
        text = self._special_text(token_id)
        text = self._decoder.push(token_id) if text is None else self._decoder.flush() + text
        return [Piece("content", text)] if text else []

    def finish(self) -> list[Piece]:
        text = self._decoder.flush()
        return [Piece("content", text)] if text else []
