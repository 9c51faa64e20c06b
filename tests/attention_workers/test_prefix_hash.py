"""A page's name stands for all that its bits follow from, and for nothing else."""

import random

from expertfleet.attention_workers.kv_cache import PAGE_SIZE
from expertfleet.attention_workers.prefix_hash import PageHasher


def names_of(names: PageHasher, tokens: list[int], salt: str = "", generation: int = 0) -> list[bytes]:
    made: list[bytes] = []
    names.extend(made, names.root(salt, generation), tokens, len(tokens) // PAGE_SIZE)
    return made


def test_names_agree_up_to_the_first_page_with_another_token() -> None:
    names = PageHasher()
    tokens = [random.randrange(1 << 18) for _ in range(4 * PAGE_SIZE + 7)]
    other = list(tokens)
    other[2 * PAGE_SIZE + 5] += 1
    mine, theirs = names_of(names, tokens), names_of(names, other)
    assert [a == b for a, b in zip(mine, theirs, strict=True)] == [True, True, False, False]
    assert len({*mine, *theirs}) == 6


def test_names_differ_by_salt_by_bits_and_between_workers() -> None:
    names, tokens = PageHasher(), list(range(PAGE_SIZE))
    made = [names_of(names, tokens, salt, generation)[0] for salt, generation in (("", 0), ("a", 0), ("", 1), ("a", 1))]
    assert len({*made, names_of(PageHasher(), tokens)[0]}) == 5


def test_names_made_in_steps_are_those_made_at_once() -> None:
    names, tokens = PageHasher(), list(range(3 * PAGE_SIZE))
    root, stepwise = names.root("s", 3), []
    for count in (0, 1, 1, 3):
        names.extend(stepwise, root, tokens, count)
    assert stepwise == names_of(names, tokens, "s", 3)
