"""Text to token ids and back, from ``tiktoken.model`` and ``tokenizer_config.json``; no code of the checkpoint is run.

Knows nothing of chats. Ids below the number of ranks are bytes; the ids from there to the vocabulary's end are control
tokens with names. ``encode_text`` cannot produce a control token whatever the text says; ``encode_prompt`` can, but only
in the spans that it is told (see ``template_text.py``). Decoding is by bytes, so any id sequence decodes to something.
"""

import base64
import binascii
import codecs
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import tiktoken

from .errors import CheckpointError
from .generation import GenerationDefaults
from .json_object import JsonObject, read_json_object
from .mistakes import START_BYTES, file_is, folder_lacks, folder_lacks_ranks
from .model_config import ModelConfig

RANKS_FILE = "tiktoken.model"
TOKENIZER_FILE = "tokenizer_config.json"
THINK_OPEN = "<think>"
THINK_CLOSE = "</think>"
# Without these as single tokens neither the template nor the reasoning parser can work.
REQUIRED = (THINK_OPEN, THINK_CLOSE, "<|im_end|>")
_SAFETY_STOPS = ("[EOS]", "[EOT]")

_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
PATTERN = "|".join(
    (
        r"[\p{Han}]+",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_SUFFIX}",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_SUFFIX}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)

# The reference tokenizer cuts long input in these two steps, and so must we: a cut shows in the ids, and without it
# the regular expression and the merging are quadratic in a run without (or of nothing but) white space.
_MAX_PIECE_CHARS = 400_000
_MAX_RUN_CHARS = 25_000
_RUN = re.compile(r"\s+|\S+")


class Tokenizer:
    def __init__(
        self, ranks: dict[bytes, int], special: dict[str, int], stop_ids: tuple[int, ...], vocab_size: int
    ) -> None:
        self.special = special
        self.stop_ids = stop_ids
        self.vocab_size = vocab_size
        self._names = {token_id: name for name, token_id in special.items()}
        self._encoding = tiktoken.Encoding("kimi", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special)
        # No name begins with another (_check_names), so the order of the alternatives does not matter.
        self._special_pattern = re.compile("|".join(map(re.escape, special)))

    @classmethod
    def from_dir(cls, directory: Path) -> "Tokenizer":
        config = ModelConfig.from_dir(directory)
        ranks = _read_ranks(directory / RANKS_FILE, config.vocab_size)
        file = read_json_object(directory / TOKENIZER_FILE)
        special = _read_special(file, len(ranks), config.vocab_size)
        defaults = GenerationDefaults.from_dir(directory)
        defaults.check_ids(directory, config.vocab_size)
        stops = [*defaults.eos_token_ids, *config.eos_token_ids]
        names = (token_name(file, "eos_token") or "", *_SAFETY_STOPS)
        stops += [special[name] for name in names if name in special]
        return cls(ranks, special, tuple(dict.fromkeys(stops)), config.vocab_size)

    def is_special(self, token_id: int) -> bool:
        return token_id in self._names

    def encode_text(self, text: str) -> list[int]:
        """Ids of untrusted text; the names of control tokens are spelled out like any other characters."""
        ids: list[int] = []
        for piece in _pieces(without_surrogates(text)):
            ids += self._encoding.encode_ordinary(piece)
        return ids

    def encode_prompt(self, text: str, spans: Iterable[tuple[int, int]]) -> list[int]:
        """Ids of a rendered template: within the spans names are control tokens, all the rest is ordinary text."""
        ids: list[int] = []
        end = 0
        for span in spans:
            for name in self._special_pattern.finditer(text, *span):
                ids += self.encode_text(text[end : name.start()])
                ids.append(self.special[name[0]])
                end = name.end()
        return ids + self.encode_text(text[end:])

    def token_bytes(self, token_id: int) -> bytes:
        """The token's bytes; of a control token its name's."""
        name = self._names.get(token_id)
        return name.encode() if name is not None else self._encoding.decode_single_token_bytes(token_id)

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return b"".join(map(self.token_bytes, ids))


class IncrementalDecoder:
    """Text of a growing id sequence; holds back bytes until they are whole UTF-8 characters (or cannot become one)."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


def token_name(config: JsonObject, key: str) -> str | None:
    """A token that ``tokenizer_config.json`` names, as text or as an object with its ``content``."""
    if not config.has(key):
        return None
    return config.object(key).text("content") if isinstance(config.data[key], dict) else config.text(key)


def without_surrogates(text: str) -> str:
    """Lone surrogates (a JSON ``\\ud800``) are no characters: each becomes U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _pieces(text: str) -> Iterator[str]:
    for start in range(0, len(text), _MAX_PIECE_CHARS):
        yield from _cut_runs(text[start : start + _MAX_PIECE_CHARS])


def _cut_runs(text: str) -> Iterator[str]:
    """Cuts within each run of (non-)white space so that none is longer than the limit."""
    start = 0
    runs = _RUN.finditer(text) if len(text) > _MAX_RUN_CHARS else ()
    for run in runs:
        for cut in range(run.start() + _MAX_RUN_CHARS, run.end(), _MAX_RUN_CHARS):
            yield text[start:cut]
            start = cut
    yield text[start:]


def _read_ranks(path: Path, vocab_size: int) -> dict[bytes, int]:
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(
            path, "", "No such file", folder_lacks(path) or folder_lacks_ranks(path.parent)
        ) from error
    except OSError as error:
        raise CheckpointError(path, "", error.strerror or str(error)) from error
    if not content:
        raise CheckpointError(path, "", file_is(content))
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), 1):
        if not line:
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            if known := file_is(content[:START_BYTES]):
                raise CheckpointError(path, "", known) from error
            raise CheckpointError(path, f"line {number}", f"must be BASE64 RANK, is {line[:80]!r}") from error
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise CheckpointError(path, "", f"its {len(ranks)} different tokens must have the ranks 0 to {len(ranks) - 1}")
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing or b"" in ranks:
        problem = f"no token for byte {missing[0]:#04x}" if missing else "holds an empty token"
        raise CheckpointError(path, "", problem)
    if len(ranks) > vocab_size:
        raise CheckpointError(path, "", f"{len(ranks)} tokens, more than vocab_size, {vocab_size}")
    return ranks


def _read_special(config: JsonObject, num_ranks: int, vocab_size: int) -> dict[str, int]:
    """Every id from the last rank to the vocabulary's end by name; what the file does not list has a reserved name."""
    names = {token_id: f"<|reserved_token_{token_id}|>" for token_id in range(num_ranks, vocab_size)}
    decoder = config.object("added_tokens_decoder")
    listed: list[int] = []
    for key in decoder.data:
        name = decoder.object(key).text("content")
        if not key.isdecimal():
            raise decoder.error(key, "must be a token id")
        token_id = int(key)
        if token_id >= vocab_size and name == f"<|reserved_token_{token_id}|>":
            # The reference class names two ids beyond the embedding's end; the model cannot take or produce them.
            continue
        if token_id not in names:
            raise decoder.error(key, f"{name!r} is out of range ({num_ranks} to {vocab_size - 1})")
        names[token_id] = name
        listed.append(token_id)
    if min(listed, default=num_ranks) > num_ranks:
        problem = (
            f"{RANKS_FILE} ends with rank {num_ranks - 1}, and nothing lies between it and this first control token"
        )
        raise decoder.error(str(min(listed)), problem)
    special = {name: token_id for token_id, name in names.items()}
    _check_names(decoder, names, special)
    return special


def _check_names(decoder: JsonObject, names: dict[int, str], special: dict[str, int]) -> None:
    for token_id, name in names.items():
        if special[name] != token_id:
            raise decoder.error(str(token_id), f"{name!r} is the name of {special[name]} as well")
        if len(name) < 2:
            raise decoder.error(str(token_id), f"{name!r} is shorter than 2 characters")
        if name != without_surrogates(name):
            raise decoder.error(str(token_id), f"{name!r} holds half a character")
    ordered = sorted(special)
    for name, following in itertools.pairwise(ordered):
        if following.startswith(name):
            raise decoder.error(str(special[following]), f"{following!r} begins with another token's name, {name!r}")
    for name in REQUIRED:
        if name not in special:
            raise decoder.error(name, "missing: it must be a single token")
