"""Stop strings found however the text is cut, and nothing held back for longer than needed."""

import random

from hypothesis import given
from hypothesis import strategies as st

from expertfleet.gateway.events.stop_strings import StopStrings

letters = st.text("ab", max_size=30)
stop_lists = st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=4)


@given(letters, stop_lists, st.randoms(use_true_random=False), st.booleans())
def test_single_characters_end_where_the_first_stop_string_is_complete(
    text: str, stops: list[str], rng: random.Random, keep: bool
) -> None:
    matcher = StopStrings(stops, keep=keep)
    shown = "".join(matcher.push(character) for character in text)
    shown += matcher.flush() if matcher.matched is None else ""
    ends = [end for end in range(len(text) + 1) if any(text[:end].endswith(stop) for stop in stops)]
    if not ends:
        assert (shown, matcher.matched) == (text, None)
        return
    stop = max((stop for stop in stops if text[: ends[0]].endswith(stop)), key=len)
    assert matcher.matched == stop
    assert shown == (text[: ends[0]] if keep else text[: ends[0] - len(stop)])


@given(letters, stop_lists, st.integers(1, 5))
def test_text_without_a_match_is_never_changed(text: str, stops: list[str], step: int) -> None:
    matcher = StopStrings(stops)
    shown = "".join(matcher.push(text[at : at + step]) for at in range(0, len(text), step))
    if matcher.matched is None:
        assert shown + matcher.flush() == text
    else:
        assert text.startswith(shown + matcher.matched)
        assert not any(stop in shown for stop in stops)


def test_only_a_possible_beginning_is_held_back() -> None:
    matcher = StopStrings(["STOP"])
    assert matcher.push("a ST") == "a "
    assert matcher.push("ART") == "START"
    assert matcher.push("STOP later") == ""
    assert matcher.push("more") == ""
    assert matcher.matched == "STOP"


def test_without_stop_strings_all_passes() -> None:
    assert StopStrings([]).push("anything") == "anything"
