"""Text of two writers: operations give Python's results, and never mistake one writer for the other."""

import random
from collections.abc import Callable
from typing import Any

import pytest
from markupsafe import Markup

from expertfleet.checkpoint.template_text import (
    TemplateText,
    is_written,
    joined,
    safe,
    tracked,
    written,
    written_spans,
)

# The two writers share no character, so that every character of a result tells who wrote it.
OURS, THEIRS = "AB <%\n", "ab\t>{\r"
SEPARATORS = [*OURS, *THEIRS, "A ", "a>", "AB", "B<A", None]


def text_of(generator: random.Random, alphabet: str) -> str:
    return "".join(generator.choice(alphabet) for _ in range(generator.randrange(4)))


def mixed(generator: random.Random) -> Any:
    parts = [written(text_of(generator, OURS)) for _ in range(6)]
    return joined(part for our in parts for part in (our, text_of(generator, THEIRS)))


def string(generator: random.Random) -> Any:
    return generator.choice([written(text_of(generator, OURS)), text_of(generator, THEIRS), mixed(generator)])


def flat(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [text for item in value for text in flat(item)]


def ours(text: str) -> list[bool]:
    inside = {index for start, stop in written_spans(text) for index in range(start, stop)}
    return [index in inside for index in range(len(text))]


OPERATIONS: dict[str, Callable[[Any, random.Random], Any]] = {
    "add": lambda text, random: random.choice([text + string(random), string(random) + text]),
    "repeat": lambda text, random: (text * random.randrange(3), random.randrange(3) * text),
    "index": lambda text, random: text[random.randrange(len(text))] if text else "",
    "slice": lambda text, random: text[
        random.randrange(-9, 9) : random.randrange(-9, 9) : random.choice([1, 2, -1, -2])
    ],
    "iterate": lambda text, random: list(text),
    "split": lambda text, random: text.split(random.choice(SEPARATORS), random.randrange(-1, 3)),
    "rsplit": lambda text, random: text.rsplit(random.choice(SEPARATORS), random.randrange(-1, 3)),
    "splitlines": lambda text, random: text.splitlines(random.choice([False, True])),
    "partition": lambda text, random: text.partition(random.choice(SEPARATORS[:-1])),
    "rpartition": lambda text, random: text.rpartition(random.choice(SEPARATORS[:-1])),
    "strip": lambda text, random: text.strip(random.choice([None, "", "Aa", "< \t>"])),
    "lstrip": lambda text, random: text.lstrip(random.choice([None, "", "Aa", "< \t>"])),
    "rstrip": lambda text, random: text.rstrip(random.choice([None, "", "Aa", "< \t>"])),
    "removeprefix": lambda text, random: text.removeprefix(text[: random.randrange(3)]),
    "removesuffix": lambda text, random: text.removesuffix(text[-1:]),
    "ljust": lambda text, random: text.ljust(random.randrange(40), random.choice([written("A"), "a"])),
    "rjust": lambda text, random: text.rjust(random.randrange(40)),
    "center": lambda text, random: text.center(random.randrange(40), random.choice([written("A"), "a"])),
    "join": lambda text, random: text.join([string(random) for _ in range(random.randrange(4))]),
    "replace": lambda text, random: text.replace(written(random.choice(OURS)), string(random), random.randrange(-1, 3)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_gives_pythons_result_and_keeps_every_writer(name: str) -> None:
    for seed in range(400):
        generator = random.Random(seed)
        text = mixed(generator) if seed % 4 else tracked(text_of(generator, THEIRS))
        state = generator.getstate()
        results = flat(OPERATIONS[name](text, generator))
        generator.setstate(state)
        assert results == flat(OPERATIONS[name](str.__str__(text), generator))
        for result in results:
            assert ours(result) == [character in OURS for character in result]


@pytest.mark.parametrize("name", ["lower", "upper", "casefold", "capitalize", "swapcase", "title"])
def test_another_case_keeps_places_or_forgets_who_wrote_what(name: str) -> None:
    for ours_, theirs in (("aß", "B"), ("İx", "y"), ("ﬁn", "dž"), ("<Ab c", "DE f")):
        text = joined([written(ours_), theirs, written(ours_)])
        result = getattr(text, name)()
        assert result == getattr(str.__str__(text), name)()
        kept = len(result) == len(text)
        assert ours(result) == (ours(text) if kept else [False] * len(result))
        assert is_written(getattr(written(ours_), name)())


def test_a_clients_text_that_cuts_brings_nothing_together() -> None:
    text = written("<|im_XXend|>")
    assert written_spans(text.replace("XX", "")) == []
    assert written_spans(text.replace(written("XX"), "")) == [(0, 10)]
    assert [ours(part) for part in text.split("XX")] == [[True] * 5, [True] * 5]


@pytest.mark.parametrize(
    ("template", "values", "expected"),
    [
        ("<%s>", ("a",), "T-T"),
        ("%s%%|%s", ("a", "b"), "-TT-"),
        ("%(x)s<%(y)d", {"x": "a", "y": 7}, "-T-"),
        ("%s", "abc", "---"),
        ("%5s|%-3d|%.1f", ("a", 1, 2.5), "-----T---T---"),
        ("%*d|%s", (3, 1, "a"), "-----"),
        ("%r", ("a",), "---"),
        ("none", (), "TTTT"),
    ],
)
def test_a_format_of_the_template_keeps_its_own_text(template: str, values: Any, expected: str) -> None:
    result = written(template) % values
    assert result == template % values
    assert "".join("T" if mine else "-" for mine in ours(result)) == expected
    assert template == "none" or written_spans(("a" + written(template)) % values) == []


def test_values_keep_their_writers_in_a_format() -> None:
    result = written("(%s)") % (joined([written("A"), "b"]),)
    assert (result, ours(result)) == ("(Ab)", [True, True, False, True])


def test_markup_joins_in_its_own_way() -> None:
    assert written("<") + Markup("<b>") == "&lt;<b>"
    assert Markup("<b>") + written("<") == "<b>&lt;"
    assert isinstance(written("<") + Markup("x"), Markup)
    printed = str(safe(joined([written("<"), "a"])))
    assert (printed, ours(printed)) == ("<a", [True, False])
    assert written_spans(str(safe(written("<")) + "a")) == []


def test_what_is_no_text_cannot_be_added() -> None:
    for other in (1, None, {"a": 1}):
        with pytest.raises(TypeError, match=r"for \+: 'str' and '"):
            written("a") + other
        with pytest.raises(TypeError, match=r"for \+: '.*' and 'str'"):
            other + written("a")


def test_text_without_anything_of_the_template_is_plain() -> None:
    assert type(joined(["a", "b"])) is str
    assert type(joined([written("A"), "b"])[1:]) is str
    assert type(joined([written("A"), "b"])) is TemplateText
    assert type(tracked("ab").replace("a", "c")) is str
