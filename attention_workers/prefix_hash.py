"""Names of whole pages: two pages have one name exactly if they hold the same bits.

Knows nothing of who holds them. What a page holds follows from all tokens up to its end, and from how they were computed; so
its name is a digest of the page's tokens and of the name before, which begins with who may share it and with the number that
changes with the bits. The key is drawn by each worker, so that nobody outside can look for two prompts of one name.
"""

import hashlib
import secrets
from array import array
from collections.abc import Sequence

from .kv_cache import PAGE

_BYTES = 16


class PageNames:
    def __init__(self) -> None:
        self._key = secrets.token_bytes(_BYTES)

    def root(self, salt: str, bits: int) -> bytes:
        """What names begin with: sequences with another salt, or of other bits, have no page in common."""
        return self._digest(bits.to_bytes(8, "little") + salt.encode())

    def extend(self, names: list[bytes], root: bytes, tokens: Sequence[int], num_pages: int) -> None:
        """Appends the missing ones of the first ``num_pages`` pages' names, all of whose tokens are there."""
        for first in range(len(names) * PAGE, num_pages * PAGE, PAGE):
            before = names[-1] if names else root
            names.append(self._digest(before + array("I", tokens[first : first + PAGE]).tobytes()))

    def _digest(self, content: bytes) -> bytes:
        return hashlib.blake2b(content, digest_size=_BYTES, key=self._key).digest()
