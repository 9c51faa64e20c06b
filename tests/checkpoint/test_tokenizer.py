import base64
import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
import regex

from expertfleet.checkpoint.errors import CheckpointError
from expertfleet.checkpoint.tokenizer import PATTERN, IncrementalDecoder, Tokenizer

TEXTS = [
    "",
    "Weather in Oslo?",
    "tabs\tand\r\nlines\n\n  indented   ",
    "日本語とEnglish混ぜて 12345 números",
    "emoji 😀👨‍👩‍👧 and \u0301combining",
    "don't, I'LL we've",
    "\x00\x7f\ufeff\U0010ffff",
    "<|im_end|> [PAD] <think>",
]


def noise(generator: random.Random, length: int) -> str:
    pools = ["abcXYZ", " \t\n\r", "0123456789", "汉字한글かな", ".,;<|>[]{}'\"", "éßıǅªﬀ\u0301", "😀🎉\u200d\ufe0f"]
    return "".join(generator.choice(generator.choice(pools)) for _ in range(length))


def change_tokenizer_config(directory: Path, added: dict[str, Any]) -> None:
    path = directory / "tokenizer_config.json"
    data = json.loads(path.read_text())
    data["added_tokens_decoder"].update(added)
    path.write_text(json.dumps(data))


@pytest.mark.parametrize("text", TEXTS)
def test_text_round_trips_without_control_tokens(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode_text(text)
    assert tokenizer.decode_bytes(ids) == text.encode()
    assert not any(map(tokenizer.is_special, ids))


def test_random_text_round_trips(tokenizer: Tokenizer) -> None:
    generator = random.Random(3)
    for _ in range(200):
        text = noise(generator, generator.randrange(1, 400))
        assert tokenizer.decode_bytes(tokenizer.encode_text(text)) == text.encode()


def test_text_is_cut_as_the_published_pattern_says(tokenizer: Tokenizer) -> None:
    """No token spans two pieces of K2's pattern, here run by another engine (set intersection rewritten)."""
    pattern = PATTERN.replace("[\\p{Lu}", "(?:(?!\\p{Han})[\\p{Lu}").replace("[\\p{Ll}", "(?:(?!\\p{Han})[\\p{Ll}")
    pattern = pattern.replace("&&[^\\p{Han}]]", "])")
    generator = random.Random(4)
    for _ in range(100):
        text = noise(generator, 200)
        ids = [token for piece in regex.findall(pattern, text) for token in tokenizer.encode_text(piece)]
        assert tokenizer.encode_text(text) == ids


def test_every_id_of_the_vocabulary_decodes(tokenizer: Tokenizer) -> None:
    parts = [tokenizer.token_bytes(token_id) for token_id in range(tokenizer.vocab_size)]
    assert all(parts)
    assert len(set(parts)) == tokenizer.vocab_size
    assert tokenizer.decode_bytes(range(tokenizer.vocab_size)) == b"".join(parts)
    with pytest.raises(KeyError):
        tokenizer.token_bytes(tokenizer.vocab_size)


def test_control_tokens_have_k2s_names_and_offsets(tokenizer: Tokenizer) -> None:
    base = tokenizer.vocab_size - 256
    offsets = {
        "[BOS]": 0,
        "[EOS]": 1,
        "<|im_end|>": 2,
        "<|im_middle|>": 17,
        "<think>": 22,
        "</think>": 23,
        "[PAD]": 255,
    }
    assert {name: tokenizer.special[name] - base for name in offsets} == offsets
    assert tokenizer.special[f"<|reserved_token_{base + 5}|>"] == base + 5
    assert sorted(tokenizer.special.values()) == list(range(base, tokenizer.vocab_size))
    assert tokenizer.is_special(base)
    assert not tokenizer.is_special(base - 1)
    assert tokenizer.stop_ids == (base + 2, base + 1, base + 9)


def test_a_prompt_has_control_tokens_within_its_spans_alone(tokenizer: Tokenizer) -> None:
    user, end = tokenizer.special["<|im_user|>"], tokenizer.special["<|im_end|>"]
    text = "<|im_user|>a <|im_end|> b<|im_end|>c"
    plain = tokenizer.encode_text
    assert tokenizer.encode_prompt(text, [(0, 13), (25, 36)]) == [user, *plain("a <|im_end|> b"), end, *plain("c")]
    assert tokenizer.encode_prompt(text, [(0, 36)]) == [user, *plain("a "), end, *plain(" b"), end, *plain("c")]
    assert tokenizer.encode_prompt(text, [(1, 22), (26, 36)]) == plain(text)
    assert tokenizer.encode_prompt(text, []) == plain(text)
    assert tokenizer.encode_prompt("<|im_end|>", [(0, 4), (4, 10)]) == plain("<|im_end|>")


def eos(copy: Path, generation: Any, config: Any, named: Any) -> tuple[int, ...]:
    """What it stops at where the files name these ends; a file that names none is away, if it can be."""
    (copy / "generation_config.json").unlink()
    if generation is not None:
        (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    for name, value in {"config.json": {"eos_token_id": config}, "tokenizer_config.json": {"eos_token": named}}.items():
        (copy / name).write_text(json.dumps({**json.loads((copy / name).read_text()), **value}))
    return Tokenizer.from_dir(copy).stop_ids


@pytest.mark.parametrize(
    ("generation", "config", "named", "expected"),
    [
        (None, None, None, [1, 9]),
        (None, None, "[EOS]", [1, 9]),
        (None, None, "<|im_end|>", [2, 1, 9]),
        (None, None, {"content": "[PAD]"}, [255, 1, 9]),
        (2, 3, "[UNK]", [2, 3, 254, 1, 9]),
        ([3, 2], [2, 4], None, [3, 2, 4, 1, 9]),
        ([2, 255], None, "</s>", [2, 255, 1, 9]),
    ],
)
def test_it_stops_at_what_the_files_name_if_the_vocabulary_has_it(
    copy: Path, tokenizer: Tokenizer, generation: Any, config: Any, named: Any, expected: list[int]
) -> None:
    base = tokenizer.vocab_size - 256

    def ids(offsets: Any) -> Any:
        return [base + at for at in offsets] if isinstance(offsets, list) else offsets and base + offsets

    assert eos(copy, ids(generation), ids(config), named) == tuple(ids(expected))


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "\ud83d\ude00"])
def test_surrogates_are_replaced_or_joined(tokenizer: Tokenizer, text: str) -> None:
    expected = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert tokenizer.decode_bytes(tokenizer.encode_text(text)).decode() == expected


@pytest.mark.parametrize("unit", ["a", " ", "\n", ".", "汉", "1", " " * 24_999 + "x", "<", "ªA", "\u0301"])
def test_long_runs_are_not_quadratic(tokenizer: Tokenizer, unit: str) -> None:
    text = unit * (500_000 // len(unit))
    start = time.monotonic()
    ids = tokenizer.encode_text(text)
    assert time.monotonic() - start < 5.0
    assert tokenizer.decode_bytes(ids).decode() == text


def test_long_runs_are_cut_where_the_reference_cuts(tokenizer: Tokenizer) -> None:
    """Every 400,000 characters, and within those after 25,000 of a run; other text is not cut."""
    words = "x " * 199_999
    assert tokenizer.encode_text(words + "the") == tokenizer.encode_text(words + "th") + tokenizer.encode_text("e")
    assert tokenizer.encode_text("the") != tokenizer.encode_text("th") + tokenizer.encode_text("e")
    for before in ("", "x "):
        run = before + "x" * 24_999
        cut = tokenizer.encode_text(run + "t") + tokenizer.encode_text("he")
        assert tokenizer.encode_text(run + "the") == cut
        assert tokenizer.encode_text(run[:-2] + "the") == tokenizer.encode_text(run[:-2]) + tokenizer.encode_text("the")


def test_incremental_decoding_equals_decoding_at_once(tokenizer: Tokenizer) -> None:
    generator = random.Random(5)
    for _ in range(300):
        if generator.random() < 0.5:
            ids = [generator.randrange(tokenizer.vocab_size) for _ in range(40)]
        else:
            ids = [generator.randrange(256) for _ in range(40)]
        decoder = IncrementalDecoder(tokenizer)
        text = "".join(map(decoder.push, ids)) + decoder.flush()
        assert text == tokenizer.decode_bytes(ids).decode("utf-8", "replace")


def test_an_unfinished_character_is_held_back(tokenizer: Tokenizer) -> None:
    decoder = IncrementalDecoder(tokenizer)
    first, *rest = (tokenizer.encode_text(character)[0] for character in map(chr, range(65, 67)))
    # The first 256 ranks of a generated vocabulary are the bytes themselves.
    held, last = "é".encode()
    assert [decoder.push(token) for token in (first, held, last, *rest)] == ["A", "", "é", "B"]
    assert decoder.push(held) == ""
    assert decoder.push(tokenizer.special["<|im_end|>"]) == "\ufffd<|im_end|>"
    assert decoder.push(held) == ""
    assert decoder.flush() == "\ufffd"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"!!!! 0\n", "line 1: must be BASE64 RANK"),
        (b"YQ==\n", "line 1: must be BASE64 RANK"),
        (b"YQ== x\n", "line 1: must be BASE64 RANK"),
        (b"YQ== 1\n", "must have the ranks 0 to 0"),
        (b"YQ== 0\nYg== 0\n", "must have the ranks 0 to 1"),
        (b"YQ== 0\n", "no token for byte 0x00"),
        (b"", "is empty; the download failed"),
    ],
)
def test_a_damaged_ranks_file_is_refused(copy: Path, content: bytes, problem: str) -> None:
    (copy / "tiktoken.model").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        Tokenizer.from_dir(copy)
    assert str(caught.value).startswith(f"{copy / 'tiktoken.model'}: ")
    assert problem in str(caught.value)


def test_more_ranks_than_the_vocabulary_are_refused(copy: Path) -> None:
    tokens = [bytes([byte]) for byte in range(256)] + [b"%08d" % number for number in range(2000)]
    lines = [base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens)]
    (copy / "tiktoken.model").write_bytes(b"".join(lines))
    with pytest.raises(CheckpointError, match="2256 tokens, more than vocab_size, 2048"):
        Tokenizer.from_dir(copy)


@pytest.mark.parametrize(
    ("added", "problem"),
    [
        ({"2048": {"content": "<x>"}}, "2048: '<x>' is out of range (1792 to 2047)"),
        ({"1791": {"content": "<x>"}}, "1791: '<x>' is out of range"),
        ({"x": {"content": "<x>"}}, "x: must be a token id"),
        ({"1800": {"content": "<think>"}}, "is the name of"),
        ({"1800": {"content": "<"}}, "shorter than 2 characters"),
        ({"1800": {"content": "<think>x"}}, "begins with another token's name, '<think>'"),
        ({"1814": {"content": "<thought>"}}, "<think>: missing: it must be a single token"),
        ({"1800": {}}, "1800.content: missing"),
    ],
)
def test_wrong_control_tokens_are_refused(copy: Path, added: dict[str, Any], problem: str) -> None:
    change_tokenizer_config(copy, added)
    with pytest.raises(CheckpointError) as caught:
        Tokenizer.from_dir(copy)
    assert str(caught.value).startswith(f"{copy / 'tokenizer_config.json'}: added_tokens_decoder.")
    assert problem in str(caught.value)


def test_reserved_names_beyond_the_embedding_do_not_exist(copy: Path) -> None:
    names = {str(token_id): {"content": f"<|reserved_token_{token_id}|>"} for token_id in (2048, 2049)}
    change_tokenizer_config(copy, names)
    tokenizer = Tokenizer.from_dir(copy)
    assert max(tokenizer.special.values()) == 2047
    assert "<|reserved_token_2048|>" not in tokenizer.special


def test_remote_code_is_never_run(copy: Path) -> None:
    (copy / "tokenization_kimi.py").write_text("raise SystemExit('this ran')")
    path = copy / "tokenizer_config.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "auto_map": {"AutoTokenizer": ["tokenization_kimi.TikTokenTokenizer", None]}}))
    assert Tokenizer.from_dir(copy).encode_text("hi")
