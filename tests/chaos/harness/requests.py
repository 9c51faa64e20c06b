"""The requests of a load: questions that nano-k2 was trained for, after as much other talk as the prompt shall be long.

Knows nothing of who answers but the checkpoint's tokenizer and template, which count the prompt's tokens.
"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from expertfleet.checkpoint.chat_template import ChatTemplate
from expertfleet.checkpoint.tokenizer import Tokenizer
from expertfleet.demo.dialogues.mixture import make_dialogue
from expertfleet.demo.dialogues.parts import Dialogue

from .plan import Load

Body = dict[str, Any]
Count = Callable[[Body], int]


def make_requests(load: Load, model: Path) -> list[Body]:
    """One body of ``/v1/chat/completions`` for each stream, the model's name left out; the same for the same load."""
    tokenizer = Tokenizer.from_dir(model)
    template = ChatTemplate.from_dir(model, tokenizer)
    lengths = load.prompt_tokens

    def count(body: Body) -> int:
        return len(template.render_ids(body["messages"], body.get("tools", [])))

    return [_request(load, index, lengths[index % len(lengths)], count) for index in range(load.streams)]


def _request(load: Load, index: int, num_tokens: int, count: Count) -> Body:
    rng = random.Random(f"{load.seed} {index}")
    dialogue = _dialogue(rng)
    seeded = load.sampling == "seeded" or (load.sampling == "mixed" and index % 2 == 1)
    body: Body = {
        "messages": dialogue.question(),
        "max_tokens": load.max_tokens,
        "temperature": 1.0 if seeded else 0.0,
        "seed": rng.getrandbits(31),
        "ignore_eos": load.ignore_eos,
        "return_token_ids": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if dialogue.tools:
        body["tools"] = list(dialogue.tools)
    return _lengthened(body, num_tokens, rng, count)


def _lengthened(body: Body, num_tokens: int, rng: random.Random, count: Count) -> Body:
    """Earlier dialogues are told in a system message, one after the other, until the prompt is long enough."""
    question, told = body["messages"], ""
    while (missing := num_tokens - count(body)) > 0:
        enough = (
            len(told) + missing
        )  # there are no more tokens than letters, so this is too little rather than too much
        while len(told) < enough:
            told += "".join(f"{message['role']}: {message['content']}\n" for message in _dialogue(rng).messages())
        body = {**body, "messages": [{"role": "system", "content": told}, *question]}
    return body


def _dialogue(rng: random.Random) -> Dialogue:
    return make_dialogue(rng.getrandbits(50), held_out=True)
