"""A made-up vocabulary in K2's file format: byte tokens, pieces of common words, then K2's 256 control token ids.

Knows nothing of models. The pieces come from a short word list and then from counting through letters and Han
characters, so any size up to K2's own can be had; merging is by rank, so every text round-trips whatever the pieces are.
"""

import base64
import itertools
import string
from collections.abc import Iterator
from typing import Any

NUM_SPECIAL = 256
MINIMUM = 256 + NUM_SPECIAL

# K2's names at their offsets from the first control token id.
_NAMES = {
    0: "[BOS]",
    1: "[EOS]",
    2: "<|im_end|>",
    3: "<|im_user|>",
    4: "<|im_assistant|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    9: "[EOT]",
    10: "<|im_system|>",
    11: "<|tool_calls_section_begin|>",
    12: "<|tool_calls_section_end|>",
    13: "<|tool_call_begin|>",
    14: "<|tool_call_argument_begin|>",
    15: "<|tool_call_end|>",
    17: "<|im_middle|>",
    18: "<|media_begin|>",
    19: "<|media_content|>",
    20: "<|media_end|>",
    21: "<|media_pad|>",
    22: "<think>",
    23: "</think>",
    254: "[UNK]",
    255: "[PAD]",
}
BOS, END_OF_TURN, PAD = 0, 2, 255
_NOT_SPECIAL = {11, 12, 13, 14, 15, 22, 23}

WORDS = """the of and to in is you that it he was for on are as with his they at be this have from or one had by word
but not what all were we when your can said there use an each which she do how their if will up other about out many
then them these so some her would make like him into time has look two more write go see number no way could people my
than first water been call who now find long down day did get come made may part over new sound take only little work
know place year live me back give most very after thing our just name good sentence man think say great where help
through much before line right too mean old any same tell boy follow came want show also around form three small set
put end does another well large must big even such because turn here why ask went men read need land different home us
move try kind hand picture again change off play spell air away animal house point page letter mother answer found study
still learn should world weather city function type string object properties required parameters description arguments
assistant system user tool result value name list true false null token model expert layer error user question answer
reason think therefore however first second next finally step check sum equal total time hour minute degree"""


def num_ranks(vocab_size: int) -> int:
    return vocab_size - NUM_SPECIAL


def special_id(vocab_size: int, offset: int) -> int:
    return num_ranks(vocab_size) + offset


def ranks_file(vocab_size: int) -> bytes:
    """The content of ``tiktoken.model``."""
    ranks: dict[bytes, int] = {}
    for piece in _pieces():
        if len(ranks) == num_ranks(vocab_size):
            break
        ranks.setdefault(piece, len(ranks))
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items())


def tokenizer_config(vocab_size: int) -> dict[str, Any]:
    return {
        "added_tokens_decoder": {
            str(special_id(vocab_size, offset)): {
                "content": name,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": offset not in _NOT_SPECIAL,
            }
            for offset, name in _NAMES.items()
        },
        "bos_token": _NAMES[BOS],
        "clean_up_tokenization_spaces": False,
        "eos_token": _NAMES[END_OF_TURN],
        "model_max_length": 1 << 60,
        "pad_token": _NAMES[PAD],
        "tokenizer_class": "TikTokenTokenizer",
        "unk_token": "[UNK]",
    }


def _pieces() -> Iterator[bytes]:
    """Candidates in rank order, some of them twice; without end."""
    yield from (bytes([byte]) for byte in range(256))
    yield from (b"\n\n", b"  ", b"    ", b", ", b". ", b'":', b'"}', b'{"')
    for word in WORDS.split():
        for form in (word, " " + word, word.capitalize(), " " + word.capitalize()):
            yield from (form[:end].encode() for end in range(2, len(form) + 1))
    for length in (2, 3):
        yield from ("".join(digits).encode() for digits in itertools.product(string.digits, repeat=length))
    for code in range(0x4E00, 0x6E00):
        character = chr(code).encode()
        yield from (character[:2], character)
    for length in itertools.count(2):
        for letters in itertools.product(string.ascii_lowercase, repeat=length):
            text = "".join(letters)
            yield from (text.encode(), b" " + text.encode())
