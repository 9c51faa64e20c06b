"""Answers with calls, perturbed at random: streamed they say the same as whole, and nothing of them is lost or leaks.

What may be dropped are markers, white space, and the header of a call that was made, whose place its name and id take.
"""

import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from expertfleet.gateway.events.answer import Answer, Ending, Event
from expertfleet.gateway.events.output_parser import Parser
from expertfleet.gateway.events.served_model import Model
from expertfleet.proto.generated import generate_pb2 as pb

SECTION, END_SECTION = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
CALL, ARGUMENTS, END_CALL = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"
SPELLED_BEGINS = (SECTION, SECTION.replace("calls", "call"))
SPELLED_ENDS = (END_SECTION, END_SECTION.replace("calls", "call"))
NOISE = (
    "!!!!",
    " and",
    "\n\n",
    " <",
    "<|",
    "<|tool_call",
    "🙂é",
    END_CALL,
    "{}",
    '{"a": 1}',
    "functions.",
    " 7 ",
    "<think>",
)


def schema(*required: str, **properties: str) -> dict[str, Any]:
    return {"properties": {name: {"type": kind} for name, kind in properties.items()}, "required": list(required)}


TOOLS: tuple[dict[str, Any], ...] = (
    {},
    {"get_weather": schema("city", city="string")},
    {"exec": schema("command", command="string"), "bash": schema("command", command="string")},
    {"get": schema("id", id="string"), "get_weather": schema("city", city="string"), "get_weather_now": schema()},
    {"ns.tool": schema("x", x="integer"), "tool": schema("y", y="integer"), "mcp__a__b-c": schema("x", x="string")},
)
# {0} a tool's name, {1} a number that occurs nowhere else.
NAMING = ("functions.{0}:{1}", "functions{0}{1}", "{0}:{1}", "functions.{0}:call_{1}", " functions.functions.{0}:{1}\n")
NAMELESS = ("{1}", "call{1}", "call_{1}6b0e7c24f0c4", "functions:{1}", "what is {1}?", "functions.nope{1}", ":{1}")


@dataclass(frozen=True)
class Part:
    """A marker, or text. ``number``: of the call whose header the text is, or whose missing arguments the marker ends."""

    text: str
    is_marker: bool = False
    is_dropped: bool = False  # a marker's name, spelled where it is meant
    number: str = ""
    name: str = ""  # of the tool that the header names


def marker(text: str, number: str = "") -> Part:
    return Part(text, is_marker=True, number=number)


class Writer:
    """Writes as a model might that has got the format nearly right."""

    def __init__(self, rng: random.Random, tools: dict[str, Any]) -> None:
        self._rng = rng
        self._tools = tools
        self._numbers = itertools.count(70_001)

    def answer(self) -> list[Part]:
        parts = list(self._answer())
        if self._chance(0.3):
            parts = self._cut(parts)
        return parts

    def _answer(self) -> Iterator[Part]:
        if self._chance(0.6):
            yield from (marker("<think>"), *self._noise())
            if self._chance(0.8):
                yield marker("</think>")
        yield from self._noise()
        for _ in range(self._rng.randint(0, 2)):
            yield from self._section()
            yield from self._noise()

    def _section(self) -> Iterator[Part]:
        begin = self._rng.random()
        if begin < 0.7:
            yield marker(SECTION)
        elif begin < 0.9:
            yield from (marker(END_SECTION), *self._noise())  # for a call that has no end
            yield from (Part(self._rng.choice(SPELLED_BEGINS), is_dropped=True), marker(CALL), marker(END_CALL))
        num_calls = self._rng.randint(0, 3)
        for _ in range(num_calls):
            yield from self._call()
            yield from self._noise() if self._chance(0.3) else ()
            yield from self._odd_marker() if self._chance(0.1) else ()
        if self._chance(0.8):
            yield marker(END_SECTION)
        elif num_calls and self._chance(0.5):
            yield from (marker(END_CALL), Part(self._rng.choice(SPELLED_ENDS), is_dropped=True))

    def _call(self) -> Iterator[Part]:
        number, name = str(next(self._numbers)), self._rng.choice(list(self._tools) or ["f"])
        form = self._rng.choice(NAMING if self._chance(0.7) else NAMELESS)
        header = Part(form.format(name, number), number=number, name=name if form in NAMING else "")
        if self._chance(0.1):
            yield from (marker(CALL), header, marker(END_CALL, number))
            return
        if self._chance(0.05):  # as the section has just begun, or a call has just ended
            yield from (marker(SECTION), header, marker(ARGUMENTS))
        else:
            yield from (marker(CALL), header, *([marker(ARGUMENTS)] if self._chance(0.9) else []))
        yield Part(self._arguments(name))
        if self._chance(0.9):
            yield marker(END_CALL)

    def _arguments(self, name: str) -> str:
        own = self._tools.get(name, {}).get("properties", {})
        value = "".join(self._rng.choices(NOISE, k=2))
        arguments = json.dumps({key: 5 if own[key]["type"] == "integer" else value for key in own} or {"k": value})
        return arguments[:-1] if self._chance(0.1) else self._rng.choice(["", "\n "]) + arguments

    def _noise(self) -> list[Part]:
        return [Part("".join(self._rng.choices(NOISE, k=self._rng.randint(1, 4))))] if self._chance(0.5) else []

    def _odd_marker(self) -> list[Part]:
        odd = ((END_CALL,), (END_SECTION,), ("</think>",), ("<think>", "</think>"), ("[EOS]",))
        return list(map(marker, self._rng.choice(odd)))

    def _cut(self, parts: list[Part]) -> list[Part]:
        """As ``max_tokens`` does."""
        kept = parts[: self._rng.randint(0, len(parts))]
        if not kept or kept[-1].is_marker:
            return kept
        text = kept[-1].text[: self._rng.randint(0, len(kept[-1].text))]
        return [*kept[:-1], Part(text, is_dropped=kept[-1].is_dropped and text in SPELLED_ENDS)]

    def _chance(self, share: float) -> bool:
        return self._rng.random() < share


def told(model: Model, tools: dict[str, Any], ids: list[int], cuts: list[int]) -> tuple[list[Event], str | None]:
    """Neighbours of one kind are joined, as cuts decide where one event ends."""
    answer = Answer(
        Parser(model.markers, model.tokenizer.is_special, model.new_decoder(), tools), Ending(), wants_logprobs=False
    )
    bounds = [0, *cuts, len(ids)]
    events = [
        event
        for start, end in itertools.pairwise(bounds)
        for event in answer.push(pb.GenerateReply(token_ids=ids[start:end]))
    ]
    events += answer.push(pb.GenerateReply(finish_reason="stop"))
    assert [id_ for event in events for id_ in event.token_ids] == ids
    joined: list[Event] = []
    for event in events:
        if event.kind is None:
            continue
        if joined and event.kind != "call" and (joined[-1].kind, joined[-1].call) == (event.kind, event.call):
            joined[-1].text += event.text
        else:
            joined.append(Event(event.kind, event.text, event.call))
    return joined, answer.finish_reason


def expected(parts: list[Part], made: set[str]) -> str:
    """All text without white space, but for headers of calls that were made; no arguments at all are ``{}``."""
    said = ""
    for part in parts:
        if part.is_marker:
            said += "{}" if part.number in made else ""
        elif not part.is_dropped and part.number not in made:
            said += part.text
    return "".join(said.split())


@pytest.mark.parametrize("seed", range(400))
def test_nothing_is_lost_nothing_leaks_and_a_stream_says_the_same(model: Model, text: Any, seed: int) -> None:
    rng = random.Random(seed)
    tools = TOOLS[seed % len(TOOLS)]
    parts = Writer(rng, tools).answer()
    special = model.tokenizer.special
    ids = [
        id_
        for part in parts
        for id_ in ([special[part.text]] if part.is_marker else model.tokenizer.encode_text(part.text))
    ]
    events, finish_reason = told(model, tools, ids, [])
    assert told(model, tools, ids, list(range(1, len(ids)))) == (events, finish_reason)
    cuts = sorted(rng.choices(range(len(ids) + 1), k=5))
    assert told(model, tools, ids, cuts) == (events, finish_reason)

    said = "".join("".join(event.text.split()) for event in events if event.kind != "call")
    headers = [part for part in parts if part.number and not part.is_marker]
    made = [header for header in headers if header.number not in said]
    assert said == expected(parts, {header.number for header in made})
    names = [event.text for event in events if event.kind == "call"]
    assert len(names) == len(made)
    assert all(header.name in ("", name) for header, name in zip(made, names, strict=True))
    if names or not tools:
        assert finish_reason == ("tool_calls" if names else "stop")
    elif headers:
        assert finish_reason == "invalid_tool_call"
