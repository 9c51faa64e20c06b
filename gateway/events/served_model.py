"""What the gateway knows of the model: tokenizer, template, sampling defaults and the context's length.

Knows nothing of weights; only small text files of the checkpoint are read.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...checkpoint.chat_template import ChatTemplate
from ...checkpoint.end_of_turn import end_of_turn_ids
from ...checkpoint.generation import GenerationDefaults
from ...checkpoint.texts import Texts
from ...checkpoint.tokenizer import IncrementalDecoder, Tokenizer
from .output_parser import Markers
from .section_names import BEGINS, ENDS

_log = logging.getLogger(__name__)
# The vocabulary's added tokens that are part of the text the model writes; all others control the conversation.
_WRITTEN = (
    "<think>",
    "</think>",
    *BEGINS,
    *ENDS,
    "<|tool_call_begin|>",
    "<|tool_call_argument_begin|>",
    "<|tool_call_end|>",
)


@dataclass(frozen=True)
class Model:
    names: tuple[str, ...]
    max_model_len: int
    vocab_size: int
    tokenizer: Tokenizer
    template: ChatTemplate
    defaults: GenerationDefaults
    markers: Markers
    written: frozenset[int]
    # What ends an answer in a chat: the tokenizer's stop ids, and what the template writes behind answers.
    chat_stop_ids: tuple[int, ...]

    @staticmethod
    def load(directory: Path, names: tuple[str, ...], max_model_len: int | None) -> "Model":
        """Reads the checkpoint's texts; ``max_model_len``: the longest prompt and answer, None: as the checkpoint has it. Raises CheckpointError, or ValueError for a length beyond the checkpoint's."""
        texts = Texts.from_dir(directory)
        longest = texts.config.max_position_embeddings
        if (max_model_len or 0) > longest:
            raise ValueError(f"max_model_len: {max_model_len} is more than the checkpoint's {longest}")
        tokenizer = texts.tokenizer
        special = tokenizer.special
        written = frozenset(special[name] for name in _WRITTEN if name in special)
        ends = end_of_turn_ids(texts.template, tokenizer, written)
        if not ends:
            _log.warning("%s: the chat template writes no control token behind an answer", directory)
        return Model(
            names=names,
            max_model_len=max_model_len or longest,
            vocab_size=texts.config.vocab_size,
            tokenizer=tokenizer,
            template=texts.template,
            defaults=texts.defaults,
            markers=Markers.from_special(special),
            written=written,
            chat_stop_ids=tuple(dict.fromkeys((*tokenizer.stop_ids, *ends))),
        )

    def at_most(self, max_model_len: int | None) -> "Model":
        """The same with the context of workers that have less; None: nothing is known of them."""
        if max_model_len is None or max_model_len >= self.max_model_len:
            return self
        return replace(self, max_model_len=max_model_len)

    def ends_in_thinking(self, prompt_ids: Sequence[int]) -> bool:
        """Whether the last control token opens thinking: the answer goes on with it."""
        for token_id in reversed(prompt_ids):
            if self.tokenizer.is_special(token_id):
                return token_id == self.markers.think
        return False

    def new_decoder(self) -> IncrementalDecoder:
        return IncrementalDecoder(self.tokenizer)

    def special_text(self, *, skip: bool) -> Callable[[int], str | None]:
        """How completions write a token: None for ordinary ones, "" for what is left out."""

        def text(token_id: int) -> str | None:
            if not self.tokenizer.is_special(token_id):
                return None
            shown = token_id in self.written or not skip
            return self.tokenizer.token_bytes(token_id).decode() if shown else ""

        return text

    def token_text(self, token_id: int) -> str:
        """A token for log-probabilities: its text, or its bytes spelled out where they are no text by themselves."""
        raw = self.tokenizer.token_bytes(token_id)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
