"""JSON that is at fault, and where."""

import json
import math

import pytest

from expertfleet.gateway.http.errors import ApiError
from expertfleet.gateway.http.json_text import MAX_DEPTH, MAX_SCHEMA_DEPTH, Fault, check_depth, parse


def nested(levels: int) -> str:
    return '{"a":' * levels + "1" + "}" * levels


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ('{"messages": [{"content": "a"}, {"content": "\\ud83d b"}]}', "messages[1].content"),
        ('{"messages": [{"content": [{"text": "a"}, {"text": "\\udc00"}]}]}', "messages[0].content[1].text"),
        ('{"prompt": ["a", "\\ud800"]}', "prompt[1]"),
        ('{"stop": "\\ud800", "messages": []}', "stop"),
        ('{"tools": [{"function": {"\\ud800": 1}}]}', "tools[0].function"),
        ('{"\\ud800": 1}', ""),
    ],
)
def test_half_of_a_surrogate_pair_names_its_field(text: str, path: str) -> None:
    with pytest.raises(Fault, match="half of a surrogate pair") as caught:
        parse(text.encode())
    assert caught.value.path == path


@pytest.mark.parametrize(
    ("text", "path", "why"),
    [
        ('{"temperature": NaN}', "temperature", "NaN is not"),
        ('{"a": 1, "logit_bias": {"5": -Infinity}}', "logit_bias.5", "-Infinity is not"),
        ('{"tools": [{"function": {"parameters": {"maximum": 1e999}}}]}', "tools[0].function.parameters.maximum", "1e999"),
        ('{"tools": [{"function": {"parameters": {"enum": [1, 2, -1e400]}}}]}', "tools[0].function.parameters.enum[2]", "range"),
        ('{"seed": ' + "9" * 5000 + "}", "seed", "too many digits"),
        ('{"n": [1, {"x": ' + "1" * 4400 + "}]}", "n[1].x", "too many digits"),
    ],
)  # fmt: skip
def test_a_number_that_is_none_names_its_field(text: str, path: str, why: str) -> None:
    with pytest.raises(Fault, match=why) as caught:
        parse(text.encode())
    assert caught.value.path == path


def test_bytes_that_are_not_utf_8_name_their_field_and_place() -> None:
    with pytest.raises(Fault, match="byte 45 is not UTF-8") as caught:
        parse(b'{"messages": [{"content": "a"}, {"content": "\xff"}]}')
    assert caught.value.path == "messages[1].content"
    with pytest.raises(Fault, match="byte 5 is not UTF-8") as caught:
        parse(b'{"a":\xff}')
    assert caught.value.path == ""


@pytest.mark.parametrize("levels", [MAX_DEPTH, 900, 100_000])
@pytest.mark.parametrize("closed", [True, False])
def test_too_deep_names_the_field_that_holds_it(levels: int, closed: bool) -> None:
    text = '{"model": "m", "tools": [{}, {"function": {"parameters":' + nested(levels) + "}}]}"
    if not closed and levels > 10_000:
        text = text[: len(text) // 2]
    with pytest.raises(Fault, match=f"limit of {MAX_DEPTH} levels") as caught:
        parse(text.encode())
    assert caught.value.path == "tools[1].function.parameters"


def test_as_deep_as_the_limit_is_read() -> None:
    assert parse(nested(MAX_DEPTH).encode())
    with pytest.raises(Fault):
        parse(nested(MAX_DEPTH + 1).encode())
    wide = "[" + ",".join(["[1]"] * 5000) + "]"
    assert len(parse(wide.encode())) == 5000


def test_a_large_text_names_the_outermost_field_alone() -> None:
    text = json.dumps({"a": "x" * (1 << 20)})[:-1] + ', "messages": [{"content": "\\ud800"}]}'
    with pytest.raises(Fault) as caught:
        parse(text.encode())
    assert caught.value.path == "messages"


def test_a_fault_of_syntax_has_a_place_in_the_text() -> None:
    for text in (b'{"a" 1}', b"", b'{"a": "\n"}', b"[1,]"):
        with pytest.raises(Fault, match="line 1 column") as caught:
            parse(text)
        assert caught.value.path == ""


def test_good_text_is_its_value() -> None:
    value = {"a": [1, 1.5, -2e300, None, True, "\u00fc\U0001f642"], "b": {"": []}}
    assert parse(json.dumps(value).encode()) == value
    assert parse(json.dumps(value, ensure_ascii=False).encode()) == value
    assert math.isclose(parse(b"0.1"), 0.1)


def test_depth_is_checked_by_field() -> None:
    check_depth(json.loads(nested(MAX_SCHEMA_DEPTH)), "here")
    check_depth("text", "here")
    with pytest.raises(ApiError, match=f"limit of {MAX_SCHEMA_DEPTH} levels") as caught:
        check_depth([json.loads(nested(MAX_SCHEMA_DEPTH))], "here")
    assert caught.value.param == "here"
