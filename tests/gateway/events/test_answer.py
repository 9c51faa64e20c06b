"""One answer from replies: the same events however the replies were cut."""

import random
from collections.abc import Sequence
from typing import Any

import pytest

from expertfleet.gateway.events.answer import Answer, Ending, Event
from expertfleet.gateway.events.output_parser import Parser
from expertfleet.gateway.events.served_model import Model
from expertfleet.proto.errors import FleetError
from expertfleet.proto.generated import generate_pb2 as pb

SAMPLE = (
    "<think>thinking – 🙂</think>Some content, and more.<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0"
    '<|tool_call_argument_begin|>{"a": 1}<|tool_call_end|><|tool_calls_section_end|><|im_end|>'
)


def answer_for(model: Model, ending: Ending, wants_logprobs: bool = False) -> Answer:
    reader = Parser(model.markers, model.tokenizer.is_special, model.new_decoder(), {"f": {}})
    return Answer(reader, ending, wants_logprobs=wants_logprobs)


def replies(ids: Sequence[int], cuts: random.Random | None) -> list[pb.GenerateReply]:
    out, at = [], 0
    while at < len(ids):
        step = cuts.randint(0, 7) if cuts is not None else 1
        out.append(pb.GenerateReply(token_ids=ids[at : at + step]))
        at += step
    return [*out, pb.GenerateReply(finish_reason="stop")]


def told(events: Sequence[Event]) -> dict[str, Any]:
    joined = {
        kind: "".join(e.text for e in events if e.kind == kind)
        for kind in ("reasoning", "content", "call", "arguments")
    }
    return joined | {
        "ids": [id_ for event in events for id_ in event.token_ids],
        "reasons": [event.finish_reason for event in events if event.finish_reason],
    }


@pytest.mark.parametrize("stops", [(), ("content, a",), ("tent", "zzz"), (".",), ("never",)])
def test_cuts_between_replies_change_nothing(model: Model, text: Any, stops: tuple[str, ...]) -> None:
    ids = text.ids(SAMPLE)
    ending = Ending(stop_ids=frozenset(model.tokenizer.stop_ids), stops=stops)
    expected: dict[str, Any] = {}
    for seed in range(25):
        answer = answer_for(model, ending)
        events: list[Event] = []
        for reply in replies(ids, random.Random(seed) if expected else None):
            events += answer.push(reply)
            if answer.finish_reason:
                break
        expected = expected or told(events)
        assert told(events) == expected
        assert answer.num_tokens == len(expected["ids"])
        assert answer.finish_reason == expected["reasons"][0]


def test_an_event_has_one_kind_of_text(model: Model, text: Any) -> None:
    answer = answer_for(model, Ending())
    kinds = [event.kind for event in answer.push(pb.GenerateReply(token_ids=text.ids(SAMPLE), finish_reason="stop"))]
    assert kinds == ["reasoning", "content", "call", "arguments"]


def test_held_content_comes_out_before_a_call(model: Model, text: Any) -> None:
    answer = answer_for(model, Ending(stops=("more. and",)))
    events = answer.push(pb.GenerateReply(token_ids=text.ids(SAMPLE), finish_reason="stop"))
    assert told(events)["content"] == "Some content, and more."
    assert [event.kind for event in events][-2:] == ["call", "arguments"]


def test_a_length_end_is_not_called_tool_calls(model: Model, text: Any) -> None:
    answer = answer_for(model, Ending())
    answer.push(pb.GenerateReply(token_ids=text.ids(SAMPLE), finish_reason="length"))
    assert answer.finish_reason == "length"


@pytest.mark.parametrize(
    ("text_of_calls", "reason", "finish_reason"),
    [
        ("<|tool_call_begin|>?<|tool_call_argument_begin|>{}1<|tool_call_end|>", "stop", "invalid_tool_call"),
        ("<|tool_call_begin|>?<|tool_call_argument_begin|>{}1<|tool_call_end|>", "length", "length"),
        ("<|tool_call_begin|>?<|tool_call_argument_begin|>{", "stop", "invalid_tool_call"),
        (
            "<|tool_call_begin|>?<|tool_call_end|><|tool_call_begin|>functions.f:1<|tool_call_end|>",
            "stop",
            "tool_calls",
        ),
        ("<|tool_call_begin|>functions.nope:0<|tool_call_argument_begin|>{}<|tool_call_end|>", "stop", "tool_calls"),
        ("noise<|tool_call_end|>", "stop", "stop"),
    ],
)
def test_the_end_says_whether_there_are_calls(
    model: Model, text: Any, text_of_calls: str, reason: str, finish_reason: str
) -> None:
    reader = Parser(model.markers, model.tokenizer.is_special, model.new_decoder(), {"f": {}, "g": {}})
    answer = Answer(reader, Ending(), wants_logprobs=False)
    ids = text.ids("<|tool_calls_section_begin|>" + text_of_calls)
    answer.push(pb.GenerateReply(token_ids=ids, finish_reason=reason))
    assert answer.finish_reason == finish_reason


def test_tokens_after_a_stop_string_are_not_counted(model: Model, text: Any) -> None:
    answer = answer_for(model, Ending(stops=("stop",)))
    answer.push(pb.GenerateReply(token_ids=text.ids("a stop") + text.ids(" and on and on"), finish_reason="length"))
    assert answer.num_tokens == len(text.ids("a stop"))
    assert answer.finish_reason == "stop"


def test_missing_log_probabilities_are_an_error_not_a_gap(model: Model) -> None:
    answer = answer_for(model, Ending(), wants_logprobs=True)
    with pytest.raises(FleetError, match="2 tokens with 0 log-probabilities"):
        answer.push(pb.GenerateReply(token_ids=[5, 6]))
