"""Remembers which worker has seen the beginning of which prompt.

Knows nothing of workers' caches or load: it is a guess that makes cached prefixes likely, never a promise.
"""

from array import array
from collections import OrderedDict
from collections.abc import Sequence

BLOCK = 256
_MAX_BLOCKS = 512
_MAX_REMEMBERED = 65536


def block_hashes(prompt_ids: Sequence[int], salt: str) -> list[int]:
    """One hash per whole block of the prompt, each over everything up to its end."""
    hashes: list[int] = []
    last = hash(salt)
    for start in range(0, min(len(prompt_ids) // BLOCK, _MAX_BLOCKS) * BLOCK, BLOCK):
        last = hash((last, array("I", prompt_ids[start : start + BLOCK]).tobytes()))
        hashes.append(last)
    return hashes


class SeenPrefixes:
    """The prefixes one worker was given, the oldest forgotten first."""

    def __init__(self) -> None:
        self._seen: OrderedDict[int, None] = OrderedDict()

    def add(self, hashes: Sequence[int]) -> None:
        for value in hashes:
            self._seen[value] = None
            self._seen.move_to_end(value)
        while len(self._seen) > _MAX_REMEMBERED:
            self._seen.popitem(last=False)

    def num_matching(self, hashes: Sequence[int]) -> int:
        """Number of leading blocks seen before."""
        for index, value in enumerate(hashes):
            if value not in self._seen:
                return index
        return len(hashes)
