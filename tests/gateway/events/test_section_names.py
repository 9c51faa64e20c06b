"""A section's name at the end of a text is held back until it is known whether a call follows."""

import pytest

from expertfleet.gateway.events.section_names import BEGINS, ENDS, Tail, after_end


@pytest.mark.parametrize(
    "text", ["a < b <| c", "<|tool_call_end|>", "<" * 20, f"{BEGINS[0]}x", f"{ENDS[1]} {BEGINS[1]} y"]
)
@pytest.mark.parametrize("step", [1, 2, 3, 5, 100])
def test_text_passes_whole_however_it_is_cut(text: str, step: int) -> None:
    tail = Tail()
    said = "".join(tail.push(text[at : at + step]) for at in range(0, len(text), step))
    assert said + tail.flush() == text
    assert tail.flush() == ""


@pytest.mark.parametrize("name", BEGINS)
@pytest.mark.parametrize("step", [1, 4, 100])
def test_a_name_is_dropped_before_a_call_alone(name: str, step: int) -> None:
    text = f"so: {name}\n "
    for drop in (True, False):
        tail = Tail()
        said = "".join(tail.push(text[at : at + step]) for at in range(0, len(text), step))
        assert said == "so: "
        assert (tail.before_call() if drop else tail.flush()) == ("" if drop else f"{name}\n ")


def test_half_a_name_before_a_call_is_text() -> None:
    tail = Tail()
    assert tail.push("a <|tool_call_sec") == "a "
    assert tail.before_call() == "<|tool_call_sec"


def test_what_follows_the_name_of_an_end() -> None:
    assert [after_end(f"\n{name} b") for name in ENDS] == [" b", " b"]
    assert after_end("b" + ENDS[0]) is None
    assert after_end(ENDS[0][:-1]) is None
