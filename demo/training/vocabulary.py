"""A byte-level BPE vocabulary for the dialogues, whose ranks go into ``tiktoken.model``.

Knows nothing of dialogues. Digits stay single tokens, so that arithmetic sees them; words begin without the blank, the dot
or the underscore before them, so that a name is the same tokens wherever it stands; rare words are cut into syllables
first, so that most tokens are common enough to be learned. 1. The library's BPE is trained on the bare words; 2. the
commonest words are added with a blank in front.
"""

import collections
from collections.abc import Iterable

import regex
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from ...checkpoint.tokenizer import PATTERN

_RARE = 30
# In this share of the texts, a word is common enough to have a token with its blank.
_COMMON_SHARE = 0.04
_CHUNK = regex.compile(PATTERN, regex.V1)
_SYLLABLE = regex.compile(r"[^aeiou]*[aeiou]+|[^aeiou]+$")
_PREFIXED = regex.compile(r"[^\p{L}\p{N}]\p{L}+")
_BLANK_WORD = regex.compile(r" \p{Ll}+")


def train_ranks(texts: Iterable[str], size: int) -> dict[bytes, int]:
    """``size`` tokens, the 256 bytes first; a token's rank is its place."""
    chunks: collections.Counter[str] = collections.Counter()
    num_texts = 0
    for text in texts:
        chunks.update(set(_CHUNK.findall(text)))
        num_texts += 1
    blank_words = [
        chunk.encode()
        for chunk, count in chunks.most_common()
        if count > _COMMON_SHARE * num_texts and _BLANK_WORD.fullmatch(chunk)
    ]
    ranks: dict[bytes, int] = {bytes([byte]): byte for byte in range(256)}
    for piece in _pieces(chunks, size - len(blank_words)):
        ranks.setdefault(piece, len(ranks))
    for word in blank_words:
        if word[1:] in ranks:
            ranks.setdefault(word, len(ranks))
    for piece in _pieces(chunks, size):
        if len(ranks) == size:
            break
        ranks.setdefault(piece, len(ranks))
    if len(ranks) != size:
        raise ValueError(f"size {size}: the texts give only {len(ranks)} tokens")
    return ranks


def _pieces(chunks: dict[str, int], size: int) -> list[bytes]:
    """The tokens of the library's BPE, in the order of its merges; ``size`` with the 256 bytes."""
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    library.train_from_iterator(_repeated(chunks), trainer)
    letters = _byte_letters()
    pieces = sorted(library.get_vocab().items(), key=lambda item: item[1])
    return [bytes(letters[letter] for letter in piece) for piece, _ in pieces]


def _repeated(chunks: dict[str, int]) -> Iterable[str]:
    bare: collections.Counter[str] = collections.Counter()
    for chunk, count in chunks.items():
        word = chunk[1:] if _PREFIXED.fullmatch(chunk) else chunk.removeprefix(" ")
        if word and not word[0].isdigit():
            bare[word] += count
    for word, count in bare.items():
        if count < _RARE:
            for piece in _SYLLABLE.findall(word):
                yield from [piece] * count
        # The whole of a rare word counts once, so its own merges come last.
        yield from [word] * (1 if count < _RARE else count)


def _byte_letters() -> dict[str, int]:
    """The letter by which the library shows each byte: itself where it prints, else one from U+0100 on."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(0x100 + index): byte for index, byte in enumerate(hidden)}
