"""Remembers which worker has seen the beginning of which prompt.

Knows nothing of workers' caches or load: it is a guess that makes cached prefixes likely, never a promise.
"""

from array import array
from collections.abc import Sequence

BLOCK = 256
_MAX_BLOCKS = 512
_PLACES = 65536


def block_hashes(prompt_ids: Sequence[int], salt: str) -> list[int]:
    """One hash per whole block of the prompt, each over everything up to its end."""
    hashes: list[int] = []
    last = hash(salt)
    for start in range(0, min(len(prompt_ids) // BLOCK, _MAX_BLOCKS) * BLOCK, BLOCK):
        last = hash((last, array("I", prompt_ids[start : start + BLOCK]).tobytes()))
        hashes.append(last)
    return hashes


class SeenPrefixes:
    """The prefixes one worker was given: half a megabyte from the start, whatever comes.

    A block's hash has one place, which the newest takes. What is lost so costs little: a block that is still there tells that all
    before it were seen.
    """

    def __init__(self) -> None:
        self._hashes = array("q", bytes(8 * _PLACES))

    def add(self, hashes: Sequence[int]) -> None:
        for value in hashes:
            self._hashes[value % _PLACES] = value

    def num_matching(self, hashes: Sequence[int]) -> int:
        """Number of leading blocks seen before."""
        for index in reversed(range(len(hashes))):
            if self._hashes[hashes[index] % _PLACES] == hashes[index]:
                return index + 1
        return 0
