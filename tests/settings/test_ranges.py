import random

import pytest

from expertfleet.settings.ranges import format_ranges, parse_ranges


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("0", (0,)), ("0-3", (0, 1, 2, 3)), ("7,0-2", (0, 1, 2, 7)), (" 1 , 1-2 ", (1, 2)), ("5-5", (5,))],
)
def test_texts(text: str, numbers: tuple[int, ...]) -> None:
    assert parse_ranges("cpus", text) == numbers


@pytest.mark.parametrize("text", ["", "a", "3-1", "-1", "1-", "0,,1", "1.5", "0-9999999", "12345678901"])
def test_others_are_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match=r"^cpus: "):
        parse_ranges("cpus", text)


def test_numbers_and_back() -> None:
    for _ in range(100):
        numbers = tuple(sorted(random.sample(range(40), random.randint(1, 40))))
        assert parse_ranges("cpus", format_ranges(numbers)) == numbers
    assert format_ranges(()) == ""
    assert format_ranges([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"
