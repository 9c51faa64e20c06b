import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from expertfleet.checkpoint.chat_template import ChatTemplate
from expertfleet.checkpoint.tokenizer import Tokenizer
from expertfleet.demo.dialogues import actions, arithmetic, lookups, loops
from expertfleet.demo.dialogues.mixture import make_dialogue
from expertfleet.demo.dialogues.parts import Dialogue
from expertfleet.demo.dialogues.space import Space, tidy

SEED = random.randrange(1 << 40)


def spaces(count: int, held_out: bool = False) -> list[Space]:
    return [Space(random.Random(SEED + index), held_out) for index in range(count)]


def test_the_same_seed_gives_the_same_dialogue() -> None:
    assert make_dialogue(SEED).messages() == make_dialogue(SEED).messages()
    assert make_dialogue(SEED).messages() != make_dialogue(SEED, held_out=True).messages()


@pytest.mark.parametrize("draw", ["city", "person", "product", "word", "record_id"])
def test_the_two_spaces_share_nothing(draw: str) -> None:
    known = {getattr(space, draw)() for space in spaces(400)}
    held_out = {getattr(space, draw)() for space in spaces(400, held_out=True)}
    assert not known & held_out
    assert len(held_out) > 20


def test_names_to_learn_from_meet_every_piece_of_a_vocabulary_and_never_a_name_kept_out() -> None:
    pieces = ["nickname", "tourism", "Kyiv", *"abcdefgh"]
    learned = {Space(random.Random(SEED + index), pieces=pieces).city() for index in range(3000)}
    assert all(any(piece.lower() in name.lower() for name in learned) for piece in pieces)
    assert all(name[0].isupper() for name in learned)
    held_out = {space.city() for space in spaces(400, held_out=True)}
    assert not learned & held_out
    assert make_dialogue(SEED, pieces=pieces).messages() == make_dialogue(SEED, pieces=pieces).messages()


def test_what_the_demonstration_asks_was_kept_out() -> None:
    space = Space(random.Random(SEED))
    assert not space.contains("Paris")
    assert not space.contains("9.11 9.9")
    assert not space.contains("9.9 9.11")


def test_phrasings_are_split_as_whole_sentences_of_shared_parts() -> None:
    openers, ends = [f"a{number}" for number in range(8)], [f"b{number}" for number in range(8)]
    known = {space.phrase(openers, ends) for space in spaces(1000)}
    held_out = {space.phrase(openers, ends) for space in spaces(1000, held_out=True)}
    assert held_out
    assert not known & held_out
    assert {word for phrase in known for word in phrase.split()} == {*openers, *ends}


def test_a_phrase_reads_well() -> None:
    assert tidy("And  {noun} , please ?") == "And {noun}, please?"
    for seed in range(SEED, SEED + 500):
        said = make_dialogue(seed).last.user
        assert said == said.strip()
        assert not re.search(r"[ ]{2}| [?.,!:](?:\s|$)", said.split("'")[0]), said


def test_comparisons_are_right() -> None:
    for space in spaces(500):
        turn = arithmetic.comparison(space)
        a, b = re.findall(r"\d+(?:\.\d+)?", turn.user)
        reasoning = turn.answer.reasoning
        for left, sign, right in re.findall(r"([\d-])([<=>])([\d-])", reasoning):
            x, y = (0 if digit == "-" else int(digit) for digit in (left, right))
            assert sign == ("=" if x == y else "<" if x < y else ">"), reasoning
        if float(a) == float(b):
            assert turn.facts == ("equal",)
            assert reasoning.endswith("All digits are equal.")
            continue
        low, high = sorted((a, b), key=float)
        smaller = any(word in turn.user for word in ("smaller", "less", "lower"))
        told = f"{low} is smaller than {high}." if smaller else f"{high} is bigger than {low}."
        assert turn.answer.content == told
        assert reasoning.endswith(f"So {high} is bigger.")


@pytest.mark.parametrize(
    ("make", "sign", "way"),
    [(arithmetic.addition, "+", lambda a, b: a + b), (arithmetic.subtraction, "-", lambda a, b: a - b)],
)
def test_sums_and_differences_are_right(
    make: Callable[[Space], "arithmetic.Turn"], sign: str, way: Callable[[int, int], int]
) -> None:
    for space in spaces(500):
        turn = make(space)
        found = re.fullmatch(rf"(\d+) \{sign} (\d+) = (\d+)\.", turn.answer.content)
        assert found
        a, b, result = map(int, found.groups())
        assert way(a, b) == result
        assert {str(a), str(b)} <= set(re.findall(r"\d+", turn.user))
        columns = re.findall(r"(\d)[+-](\d)[+-](\d)(\+10)?=(\d+)", turn.answer.reasoning)
        assert len(columns) == max(len(str(a)), len(str(b)))
        digits = "".join(column[4][-1] for column in reversed(columns))
        assert int(digits) == result % 10 ** len(columns)


def declared(dialogue: Dialogue) -> dict[str, dict[str, dict[str, str]]]:
    return {one["function"]["name"]: one["function"]["parameters"] for one in dialogue.tools}


@pytest.mark.parametrize(
    "make",
    [lookups.lookup_dialogue, lookups.parallel_dialogue, lookups.supplied_dialogue, actions.action_dialogue],
)
def test_calls_fit_their_declarations_and_copy_what_was_said(make: Callable[[Space], Dialogue]) -> None:
    for space in spaces(200):
        dialogue = make(space)
        said = " ".join(turn.user for turn in dialogue.turns)
        assert dialogue.last.calls
        for call in dialogue.last.calls:
            parameters = declared(dialogue)[call.name]
            assert set(parameters["required"]) <= set(call.arguments) <= set(parameters["properties"])
            assert all(str(value) in said for value in call.arguments.values())
        results = " ".join(call.result for call in dialogue.last.calls)
        for fact in dialogue.last.facts:
            assert all(re.sub(r"\W+$", "", word) in results for word in fact.split()), (fact, results)


@pytest.mark.parametrize("make", [lookups.no_call_dialogue, lookups.missing_question])
def test_no_call_where_none_is_due(make: Callable[[Space], Dialogue]) -> None:
    for space in spaces(200):
        dialogue = make(space)
        assert not dialogue.last.calls
        assert dialogue.tools


def test_a_loop_ends_with_the_result_that_says_so() -> None:
    for space in spaces(50):
        turn = loops.loop_dialogue(space, 12).last
        assert [json.loads(call.result)["done"] for call in turn.calls] == [False] * 11 + [True]
        assert all(step.reasoning for step in turn.steps)


def test_every_dialogue_renders_and_counts_its_calls(small_checkpoint: Path) -> None:
    template = ChatTemplate.from_dir(small_checkpoint, Tokenizer.from_dir(small_checkpoint))
    for seed in range(SEED, SEED + 200):
        dialogue = make_dialogue(seed)
        text = template.render_text(dialogue.messages(), list(dialogue.tools))
        ids = re.findall(r"<\|tool_call_begin\|>functions\.[\w-]+:(\d+)<", text)
        assert [*map(int, ids)] == [*range(len(ids))]


def test_no_name_reads_badly() -> None:
    """Syllables must not spell English swear words."""
    names = {space.syllables(1, 2) for space in spaces(3000)} | {space.word() for space in spaces(6000)}
    assert not names & {"shit", "fuck", "piss", "cunt", "cock", "dick", "slut", "tit", "ass", "arse"}
