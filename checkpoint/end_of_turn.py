"""Which control token ends a turn of the assistant: the one that the chat template writes behind its answers.

Knows nothing of files. Short conversations are rendered, and the first control token behind the assistant's words is taken;
a template that refuses one of them (it may want a system message, or the user to speak last) is asked with the others.
"""

import itertools
from collections.abc import Container, Sequence

from .chat_template import ChatTemplate, TemplateError
from .tokenizer import Tokenizer

# Digits, as templates may strip and recase words.
_ANSWER = "31415926535897932384"
_SYSTEM = {"role": "system", "content": "1"}
_QUESTION = {"role": "user", "content": "2"}
_CHATS = tuple(
    (*before, _QUESTION, {"role": "assistant", "content": _ANSWER}, *after)
    for before, after in itertools.product(((), (_SYSTEM,)), ((), (_QUESTION,)))
)


def end_of_turn_ids(template: ChatTemplate, tokenizer: Tokenizer, written: Container[int]) -> tuple[int, ...]:
    """``written`` tokens are part of what the assistant says. Empty for a template that writes nothing behind answers."""
    ends: list[int] = []
    for chat in _CHATS:
        try:
            ids = template.render_ids(chat, add_generation_prompt=False)
        except TemplateError:
            continue
        ends += _behind_answer(ids, tokenizer, written)
    return tuple(dict.fromkeys(ends))


def _behind_answer(ids: Sequence[int], tokenizer: Tokenizer, written: Container[int]) -> list[int]:
    text = b""
    for token_id in ids:
        if not tokenizer.is_special(token_id):
            text += tokenizer.token_bytes(token_id)
        elif _ANSWER.encode() in text and token_id not in written:
            return [token_id]
    return []
