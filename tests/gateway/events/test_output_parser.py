"""Tokens told apart; the cases that peers' parsers broke on, and equality of streamed and whole answers."""

import codecs
import random
import re
from collections.abc import Mapping
from typing import Any

import pytest

from expertfleet.gateway.events.output_parser import Markers, Parser

NAMES = {
    "<think>": 300,
    "</think>": 301,
    "<|tool_calls_section_begin|>": 302,
    "<|tool_calls_section_end|>": 303,
    "<|tool_call_begin|>": 304,
    "<|tool_call_argument_begin|>": 305,
    "<|tool_call_end|>": 306,
    "[EOS]": 307,
}
# Short spellings for the tests: {S} section, {C} call, {A} arguments, {E} end of call, {X} end of section.
SHORT = {"{S}": 302, "{X}": 303, "{C}": 304, "{A}": 305, "{E}": 306, "{T}": 300, "{t}": 301, "{EOS}": 307}
CITY: dict[str, Any] = {"type": "object", "properties": {"city": {}}, "required": ["city"]}
QUERY: dict[str, Any] = {"type": "object", "properties": {"query": {}, "limit": {}}, "required": ["query"]}
TOOLS = {"get_weather": CITY, "search": QUERY}


class Bytes:
    """Token ids below 256 are bytes."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        return self._decoder.decode(bytes([token_id]))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


def ids(text: str) -> list[int]:
    pieces = re.split(r"(\{(?:S|X|C|A|E|T|t|EOS)\})", text)
    return [id_ for piece in pieces for id_ in ([SHORT[piece]] if piece in SHORT else piece.encode())]


def parse(text: str | list[int], tools: Mapping[str, Any] | None = TOOLS) -> dict[str, Any]:
    """The answer put together from the pieces, with consistency of the pieces checked."""
    parser = Parser(Markers.from_special(NAMES), lambda id_: id_ >= 300, Bytes(), tools)
    pieces = [piece for id_ in (ids(text) if isinstance(text, str) else text) for piece in parser.push(id_)]
    pieces += parser.finish()
    calls: list[list[str]] = []
    for piece in pieces:
        assert piece.text
        if piece.kind == "call":
            assert piece.call == len(calls)
            calls.append([piece.text, ""])
        elif piece.kind == "arguments":
            assert piece.call == len(calls) - 1
            calls[piece.call][1] += piece.text
    assert parser.num_calls == len(calls)
    joined = {kind: "".join(p.text for p in pieces if p.kind == kind) for kind in ("reasoning", "content")}
    return {key: value for key, value in {**joined, "calls": [tuple(call) for call in calls]}.items() if value}


def call(name: str, arguments: str) -> str:
    return f"{{C}}{name}{{A}}{arguments}{{E}}"


OSLO, ROME = '{"city": "Oslo"}', '{"city": "Rome"}'
CASES = {
    "plain text is content": ("hello", {"content": "hello"}),
    "reasoning then content": ("{T}a{t}b", {"reasoning": "a", "content": "b"}),
    "empty reasoning": ("{T}{t}b", {"content": "b"}),
    "unfinished reasoning": ("{T}abc", {"reasoning": "abc"}),
    "white space before reasoning is dropped": (" \n{T}a{t}b", {"reasoning": "a", "content": "b"}),
    "only white space": (" \n", {"content": " \n"}),
    "several think blocks": ("{T}a{t}b{T}c{t}d", {"reasoning": "ac", "content": "bd"}),
    "an orphan end of reasoning is dropped": ("a{t}b", {"content": "ab"}),
    "a second opening inside reasoning is dropped": ("{T}a{T}b{t}c", {"reasoning": "ab", "content": "c"}),
    "emoji": ("{T}🙂{t}é🏔", {"reasoning": "🙂", "content": "é🏔"}),
    "markers spelled as text are text": ("<think>a</think><|tool_calls_section_begin|>", None),
    "single call": ("{S}" + call("functions.get_weather:0", OSLO) + "{X}", {"calls": [("get_weather", OSLO)]}),
    "content before the section": (
        "Hi. {S}" + call("functions.get_weather:0", OSLO) + "{X}",
        {"content": "Hi. ", "calls": [("get_weather", OSLO)]},
    ),
    "parallel calls": (
        "{S}" + call("functions.get_weather:0", OSLO) + call("functions.search:1", "{}") + "{X}",
        {"calls": [("get_weather", OSLO), ("search", "{}")]},
    ),
    "three calls with foreign numbers": (
        "{S}" + "".join(call(f"functions.get_weather:{n}", OSLO) for n in (5, 6, 6)) + "{X}",
        {"calls": [("get_weather", OSLO)] * 3},
    ),
    "a section ends open reasoning": (
        "{T}think{S}" + call("functions.get_weather:0", OSLO) + "{X}",
        {"reasoning": "think", "calls": [("get_weather", OSLO)]},
    ),
    "end of reasoning inside a section is dropped": (
        "{T}a{S}" + call("functions.get_weather:0", OSLO) + "{t}{X}",
        {"reasoning": "a", "calls": [("get_weather", OSLO)]},
    ),
    "angle brackets in arguments": (
        "{S}" + call("functions.search:0", '{"query": "<div> a < b {{x}} <|"}') + "{X}",
        {"calls": [("search", '{"query": "<div> a < b {{x}} <|"}')]},
    ),
    "multi-line arguments": (
        "{S}" + call("functions.search:0", '{\n  "query": "a\\nb"\n}') + "{X}",
        {"calls": [("search", '{\n  "query": "a\\nb"\n}')]},
    ),
    "white space around header and arguments": (
        "{S}\n{C} functions.get_weather:0\n{A} \n" + OSLO + " \n{E}\n{X}\n",
        {"calls": [("get_weather", OSLO)]},
    ),
    "no functions prefix": ("{S}" + call("get_weather:0", OSLO) + "{X}", {"calls": [("get_weather", OSLO)]}),
    "hyphens and underscores": (
        "{S}" + call("functions.mcp__portal__search-documents:0", "{}") + "{X}",
        {"calls": [("mcp__portal__search-documents", "{}")]},
    ),
    "dots in a name": ("{S}" + call("functions.a.b.c:12", "{}") + "{X}", {"calls": [("a.b.c", "{}")]}),
    "a declared name without a number": (
        "{S}" + call("functions.search", "{}") + "{X}",
        {"calls": [("search", "{}")]},
    ),
    "a call that names no tool becomes content, the next one does not": (
        "{S}" + call("functions.invalid.0", "{}") + call("weird@id", "{}") + call("search:1", "{}") + "{X}",
        {"content": "functions.invalid.0{}weird@id{}", "calls": [("search", "{}")]},
    ),
    "the right form with an undeclared name is a call": (
        "{S}" + call("functions.nope:0", "{}") + "{X}",
        {"calls": [("nope", "{}")]},
    ),
    "a name in a header of another form": (
        "{S}" + call("functionssearch5", '{"query": 1}') + call("functions.get_weather:call_1", OSLO) + "{X}",
        {"calls": [("search", '{"query": 1}'), ("get_weather", OSLO)]},
    ),
    "a foreign id is told by its arguments": (
        "{S}" + call("call_6b0e7c24f0c44f0d996b59e5", OSLO) + call("toolu_01AbC", '{"query": "x"}') + "{X}",
        {"calls": [("get_weather", OSLO), ("search", '{"query": "x"}')]},
    ),
    "an empty header is told by its arguments": ("{S}" + call("", OSLO) + "{X}", {"calls": [("get_weather", OSLO)]}),
    "an empty call": ("{S}{C}{E}{X}", {}),
    "no marker before the arguments": (
        "{S}{C}functions.get_weather:0" + OSLO + "{E}{C}" + ROME + "{E}{C}search:2\n{E}{X}",
        {"calls": [("get_weather", OSLO), ("get_weather", ROME), ("search", "{}")]},
    ),
    "no marker before the arguments, nor after them": (
        "{S}{C}functions.get_weather:0" + OSLO + "{X}ok",
        {"calls": [("get_weather", OSLO)], "content": "ok"},
    ),
    "no marker before the call": (
        "{S}functions.get_weather:0{A}" + OSLO + "{E} search:1 {A}{}{E}get_weather" + ROME + "{E}{X}",
        {"calls": [("get_weather", OSLO), ("search", "{}"), ("get_weather", ROME)]},
    ),
    "arguments on both sides of their marker": (
        "{S}{C}search:0" + '{"query": {A}1}{E}{C}{"name": "search"}{A}{"query": 2}{E}{X}',
        {"calls": [("search", '{"query": 1}'), ("search", '{"query": 2}')]},
    ),
    "a section's begin within a header": (
        "{S}{C}search:0{S}{A}{}{C}get_weather:1" + OSLO + "{S}search:2{A}{}{E}{X}",
        {"calls": [("search", "{}"), ("get_weather", OSLO), ("search", "{}")]},
    ),
    "a section's begin within arguments": (
        "{S}{C}search:0{A}{{S}}{E}{X}",
        {"calls": [("search", "{}")]},
    ),
    "noise is no call, whatever it holds": (
        "{S}I search {{E}search:1{E}{C}I search{E}{C}search:2{E}{X}",
        {"content": "I search {search:1I search", "calls": [("search", "{}")]},
    ),
    "a header alone that names no tool": ("{S}{C}what?{E}{X}", {"content": "what?"}),
    "a header before another call": (
        "{S}{C}what?{C}search:0{A}{}{E}{X}",
        {"content": "what?", "calls": [("search", "{}")]},
    ),
    "invalid JSON is kept": (
        "{S}" + call("functions.get_weather:0", '{"city":') + call("functions.search:1", "{}") + "{X}",
        {"calls": [("get_weather", '{"city":'), ("search", "{}")]},
    ),
    "no arguments at all become an empty object": (
        "{S}" + call("functions.search:0", "") + "{X}",
        {"calls": [("search", "{}")]},
    ),
    "a bare counter is told by its arguments": (
        "{S}" + call("0", OSLO) + call("1", '{"query": "x"}') + "{X}",
        {"calls": [("get_weather", OSLO), ("search", '{"query": "x"}')]},
    ),
    "an ambiguous bare counter becomes content": (
        "{S}" + call("0", "{}") + call("1", '{"other": 1}') + "{X}",
        {"content": '0{}1{"other": 1}'},
    ),
    "a bare counter with bad JSON becomes content": ("{S}" + call("0", '{"city"') + "{X}", {"content": '0{"city"'}),
    "noise between markers is content": (
        "{S}!!!!" + call("functions.get_weather:0", OSLO) + " and " + call("functions.search:1", "{}") + "??{X}",
        {"content": "!!!! and ??", "calls": [("get_weather", OSLO), ("search", "{}")]},
    ),
    "noise that is too long for a header": (
        "{S}" + "x" * 300 + "{A}" + OSLO + "{E}{X}",
        {"content": "x" * 300 + OSLO},
    ),
    "text after the section is content": (
        "a{S}" + call("functions.search:0", "{}") + "{X}\n\ntrailing < text \n",
        {"content": "a\n\ntrailing < text \n", "calls": [("search", "{}")]},
    ),
    "white space alone between markers is dropped": (
        "{S} {C}search:0{A}{}{E}\n{C}search:1{A} {}\n{E} {X}\n{S}\n{X} ",
        {"calls": [("search", "{}")] * 2},
    ),
    "reasoning after a section": (
        "{T}a{S}" + call("search:0", "{}") + "{X}\n{T}b{t}c",
        {"reasoning": "ab", "content": "c", "calls": [("search", "{}")]},
    ),
    "reasoning between calls": (
        "{S}" + call("search:0", "{}") + "{T}b{t}" + call("search:1", "{}") + "{X}",
        {"reasoning": "b", "calls": [("search", "{}")] * 2},
    ),
    "an empty section": ("a{S}{X}b", {"content": "ab"}),
    "a second section": (
        "{S}" + call("search:0", "{}") + "{X}x{S}" + call("search:1", "{}") + "{X}",
        {"content": "x", "calls": [("search", "{}")] * 2},
    ),
    "a section's begin spelled out before a call": (
        "a <|tool_call_section_begin|>\n" + call("search:0", "{}") + "<|tool_call_section_end|>\n",
        {"content": "a ", "calls": [("search", "{}")]},
    ),
    "a section's begin spelled out in reasoning": (
        "{T}a<|tool_calls_section_begin|>" + call("search:0", "{}") + "{X}",
        {"reasoning": "a", "calls": [("search", "{}")]},
    ),
    "section markers spelled out between calls": (
        "{S}<|tool_call_section_begin|>"
        + call("search:0", "{}")
        + "<|tool_call_section_end|> b <|tool_call_section_begin|>"
        + call("search:1", "{}"),
        {"content": " b ", "calls": [("search", "{}")] * 2},
    ),
    "section markers spelled out elsewhere are text": (
        "<|tool_call_section_begin|> <|tool_call_section_end|>{S}{X}<|tool_call_section_begin|>",
        {"content": "<|tool_call_section_begin|> <|tool_call_section_end|><|tool_call_section_begin|>"},
    ),
    "a name begun that comes to nothing": (
        "a <|tool{t}_calls_section_begin|>" + call("search:0", "{}") + "<|tool_call",
        {"content": "a <|tool_calls_section_begin|><|tool_call", "calls": [("search", "{}")]},
    ),
    "a call without a section": (call("functions.search:0", "{}"), {"calls": [("search", "{}")]}),
    "an orphan end of call": ("a{E}b{X}c{A}d", {"content": "abcd"}),
    "truncated in the arguments": (
        '{S}{C}functions.get_weather:0{A}{"city": "Bei',
        {"calls": [("get_weather", '{"city": "Bei')]},
    ),
    "truncated in the header": ("a{S}{C}functions.get_wea", {"content": "afunctions.get_wea"}),
    "truncated in the arguments of a call whose tool is not known": (
        '{S}{C}0{A}{"city": "Bei',
        {"content": '0{"city": "Bei'},
    ),
    "over before the end of a call whose tool its arguments tell": (
        "{S}{C}0{A}" + OSLO,
        {"calls": [("get_weather", OSLO)]},
    ),
    "truncated in arguments without a marker": (
        '{S}{C}get_weather:0{"city": "Bei',
        {"calls": [("get_weather", '{"city": "Bei')]},
    ),
    "truncated before the section's end": ("{S}" + call("search:0", "{}"), {"calls": [("search", "{}")]}),
    "a call that never ends before the next": (
        "{S}{C}search:0{A}{}" + call("get_weather:1", OSLO) + "{X}",
        {"calls": [("search", "{}"), ("get_weather", OSLO)]},
    ),
    "a section's end closes an open call": (
        "{S}{C}search:0{A}{}{X}after",
        {"content": "after", "calls": [("search", "{}")]},
    ),
    "control tokens are never shown": ("{T}a{EOS}b{t}c{EOS}d", {"reasoning": "ab", "content": "cd"}),
    "a trailing bracket is not swallowed": ("a <", {"content": "a <"}),
}


@pytest.mark.parametrize("case", CASES)
def test_answer_is_told_apart(case: str) -> None:
    text, expected = CASES[case]
    assert parse(text) == (expected if expected is not None else {"content": text})


def test_a_bare_counter_names_the_only_tool_even_with_bad_json() -> None:
    only = {"get_weather": CITY}
    assert parse("{S}" + call("0", '{"city"') + "{X}", only) == {"calls": [("get_weather", '{"city"')]}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a{S}" + call("functions.search:0", "{}") + "{X}", {"content": "afunctions.search:0{}"}),
        ("{S}\n" + call("f:0", "{}") + "\n{X}\n", {"content": "f:0{}"}),
        ("{T}a{S}" + call("f:0", "{}") + "{X}b", {"reasoning": "a", "content": "f:0{}b"}),
        ("{T}a{E}{X}b", {"reasoning": "ab"}),
        ("a<|tool_call_section_begin|>" + call("f:0", "{}"), {"content": "af:0{}"}),
    ],
)
def test_without_tools_a_call_is_content_and_no_marker_leaks(text: str, told: dict[str, Any]) -> None:
    assert parse(text, None) == told


@pytest.mark.parametrize("begin", ["<|tool_calls_section_begin|>", "<|tool_call_section_begin|>"])
def test_a_vocabulary_may_have_either_spelling_of_the_section_or_both(begin: str) -> None:
    end = begin.replace("begin", "end")
    one = Markers.from_special({begin: 7, end: 8})
    assert (one.sections, one.section_ends) == ((7,), (8,))
    both = Markers.from_special({**NAMES, "<|tool_call_section_begin|>": 310, "<|tool_call_section_end|>": 311})
    parser = Parser(both, lambda id_: id_ >= 300, Bytes(), TOOLS)
    pieces = [p for id_ in [310, *ids(call("search:0", "{}")), 311, *b"x"] for p in parser.push(id_)]
    assert [(p.kind, p.text) for p in pieces] == [
        ("call", "search"), ("arguments", "{"), ("arguments", "}"), ("content", "x")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "num_invalid"),
    [
        ("{S}" + call("0", "{}") + call("search:1", "{}") + call("1", "{}") + "{X}", 2),
        ("{S}{C}{E}{X}", 1),
        ("{S}{C}fun", 1),
        ("{S}!!{X}{S}{X}a{E}{X}{A}b", 0),
        ("{S}" + call("functions.nope:0", "{}") + "{X}", 0),
    ],
)
def test_calls_that_name_no_tool_are_counted(text: str, num_invalid: int) -> None:
    parser = Parser(Markers.from_special(NAMES), lambda id_: id_ >= 300, Bytes(), TOOLS)
    for id_ in ids(text):
        parser.push(id_)
    parser.finish()
    assert parser.num_invalid_calls == num_invalid


def test_a_call_comes_out_as_soon_as_its_tool_is_known() -> None:
    parser = Parser(Markers.from_special(NAMES), lambda id_: id_ >= 300, Bytes(), TOOLS)
    *before, end = ids("{S}" + call("call_1", OSLO))
    assert [piece for id_ in before for piece in parser.push(id_)] == []
    assert [(piece.kind, piece.text) for piece in parser.push(end)] == [("call", "get_weather"), ("arguments", OSLO)]
    *before, marker = ids("{C}functionssearch5{A}")
    assert [piece for id_ in before for piece in parser.push(id_)] == []
    assert [(piece.kind, piece.text) for piece in parser.push(marker)] == [("call", "search")]


def test_an_answer_cut_before_the_arguments_calls_no_tool_that_needs_none() -> None:
    tools = {"now": {}, "get_weather": CITY}
    assert parse("{S}{C}0{A}", tools) == {"content": "0"}
    assert parse("{S}{C}0{A}{E}", tools) == {"calls": [("now", "{}")]}


def test_long_arguments_come_in_pieces_and_whole() -> None:
    arguments = '{"query": "' + "x y\n" * 20_000 + '"}'
    assert parse("{S}" + call("search:0", arguments) + "{X}") == {"calls": [("search", arguments)]}


def test_reasoning_tokens_are_counted_without_markers() -> None:
    parser = Parser(Markers.from_special(NAMES), lambda id_: id_ >= 300, Bytes(), TOOLS)
    for id_ in ids("{T}abc{t}def"):
        parser.push(id_)
    assert parser.num_reasoning_tokens == 3


@pytest.mark.parametrize(
    ("text", "reasoning", "content", "num_reasoning"),
    [
        ("abc{t}def", "abc", "def", 3),
        (" \nab{t}\nd", " \nab", "\nd", 4),
        ("abc", "abc", "", 3),
        ("{t}d", "", "d", 0),
        ("{T}ab{t}d", "ab", "d", 2),
        ("a{S}" + "{X}", "a", "", 1),
        ("a{t}b{T}c{t}d", "ac", "bd", 2),
        ("", "", "", 0),
    ],
)
def test_an_answer_whose_prompt_opened_thinking_begins_with_reasoning(
    text: str, reasoning: str, content: str, num_reasoning: int
) -> None:
    parser = Parser(Markers.from_special(NAMES), lambda id_: id_ >= 300, Bytes(), TOOLS, thinks=True)
    pieces = [piece for id_ in ids(text) for piece in parser.push(id_)] + parser.finish()
    told = {kind: "".join(piece.text for piece in pieces if piece.kind == kind) for kind in ("reasoning", "content")}
    assert told == {"reasoning": reasoning, "content": content}
    assert parser.num_reasoning_tokens == num_reasoning


def test_incomplete_characters_become_replacements_only_at_the_end() -> None:
    euro = list("€".encode())
    assert parse([300, *euro[:2], 301, *euro, euro[0]]) == {"reasoning": "\ufffd", "content": "€\ufffd"}


def test_random_tokens_never_leak_a_marker_nor_lose_order() -> None:
    rng = random.Random(5)
    for _ in range(400):
        tokens = [rng.choice([*range(300, 308), *b'ab {}":0.', 0xE2, 0x82]) for _ in range(rng.randrange(60))]
        told = parse(tokens)
        shown = told.get("reasoning", "") + told.get("content", "") + "".join(map("".join, told.get("calls", [])))
        assert "<" not in shown
        assert "|" not in shown
