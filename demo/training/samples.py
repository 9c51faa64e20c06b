"""Dialogues as rows of token ids, with the places marked that are learned, in batches of similar length.

Knows nothing of the model. A row is the chat as the template renders it and the last answer as the model must write it;
learned are the tokens of the assistant after the user's last words, as these alone keep their thinking in the prompt.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from ...checkpoint.chat_template import ChatTemplate
from ...checkpoint.tokenizer import THINK_CLOSE, THINK_OPEN, Tokenizer
from ..dialogues.parts import Dialogue

_POOL_ROWS = 4096
_END = "<|im_end|>"


@dataclass(frozen=True)
class Sample:
    """``learned[i]`` tells whether token i is predicted by the model, not given."""

    ids: list[int]
    learned: list[bool]
    kind: str


@dataclass(frozen=True)
class Batch:
    """``ids`` [rows, length] int64; rows are padded at the right, and whole rows at the end may be padding.

    ``learned`` and ``present`` [rows, length] bool are False on padding; ``kinds`` are those of the first rows.
    """

    ids: torch.Tensor
    learned: torch.Tensor
    present: torch.Tensor
    kinds: list[str]

    def to(self, device: torch.device) -> "Batch":
        return Batch(self.ids.to(device), self.learned.to(device), self.present.to(device), self.kinds)


class Renderer:
    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        self._tokenizer = tokenizer
        self._template = template
        special = tokenizer.special
        self._assistant, self._middle, self._end = (
            special[name] for name in ("<|im_assistant|>", "<|im_middle|>", _END)
        )
        self._think, self._think_end = special[THINK_OPEN], special[THINK_CLOSE]

    @property
    def pieces(self) -> list[str]:
        """The vocabulary's tokens that are letters."""
        tokens = map(self._tokenizer.token_bytes, range(min(self._tokenizer.special.values())))
        return [token.decode() for token in tokens if token.isascii() and token.isalpha()]

    def render(self, dialogue: Dialogue) -> Sample:
        messages = dialogue.messages()
        given = self._template.render_ids(dialogue.question(), list(dialogue.tools), add_generation_prompt=False)
        ids = self._template.render_ids(messages[:-1], list(dialogue.tools))
        answer = dialogue.last.answer
        encode = self._tokenizer.encode_text
        ids += [self._think, *encode(answer.reasoning), self._think_end, *encode(answer.content), self._end]
        learned = [False] * len(given)
        speaking = header = False
        for token in ids[len(given) :]:
            learned.append(speaking)
            header = header or token == self._assistant
            if header and token == self._middle:
                header, speaking = False, True
            elif token == self._end:
                speaking = False
        return Sample(ids, learned, dialogue.last.kind)


def batches(
    samples: Iterator[Sample], tokens: int, pad: int, shuffle: Callable[[list[Batch]], None]
) -> Iterator[Batch]:
    """Endless as ``samples``; each batch has about ``tokens`` places (or one longer row)."""
    while pool := list(itertools.islice(samples, _POOL_ROWS)):
        pool.sort(key=lambda sample: len(sample.ids))
        ready = []
        while pool:
            length = _rounded(len(pool[-1].ids))
            rows = max(1, tokens // length)
            ready.append(_batch(pool[-rows:], rows, length, pad))
            del pool[-rows:]
        shuffle(ready)
        yield from ready


def wanted_places(batch: Batch) -> torch.Tensor:
    """Where the learned tokens are predicted, in the batch's rows in turn: each at the place before its own."""
    return batch.learned.flatten().nonzero()[:, 0] - 1


def answered_right(batch: Batch, hits: torch.Tensor) -> list[bool]:
    """By row: whether every learned token was hit; ``hits`` [learned tokens] bool."""
    wrong = torch.zeros_like(batch.learned)
    wrong[batch.learned] = ~hits
    return (~wrong.any(1)).tolist()


def _rounded(length: int) -> int:
    """Few different lengths, because every shape is prepared once."""
    step = 32 if length <= 512 else 128 if length <= 1024 else 512
    return -(-length // step) * step


def _batch(rows: list[Sample], num_rows: int, length: int, pad: int) -> Batch:
    ids = torch.full((num_rows, length), pad)
    learned = torch.zeros(num_rows, length, dtype=torch.bool)
    present = torch.zeros(num_rows, length, dtype=torch.bool)
    for index, row in enumerate(rows):
        ids[index, : len(row.ids)] = torch.tensor(row.ids)
        learned[index, : len(row.ids)] = torch.tensor(row.learned)
        present[index, : len(row.ids)] = True
    return Batch(ids, learned, present, [row.kind for row in rows])
