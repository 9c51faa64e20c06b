"""Prefix caching's hashes of full pages: two pages have one hash exactly if they hold the same bits.

Knows nothing of the cache. A page's content follows from all tokens up to its end and from how they were computed. So its hash covers
the page's tokens and the hash of the page before; the first one covers the cache salt and the generation of the numerics class. Each
worker draws its own key, so a client cannot look for two prompts with one hash.
"""

import hashlib
import secrets
from array import array
from collections.abc import Sequence

from .kv_cache import PAGE_SIZE

_BYTES = 16


class PageHasher:
    def __init__(self) -> None:
        self._key = secrets.token_bytes(_BYTES)

    def root(self, salt: str, generation: int) -> bytes:
        """The hash before the first page: sequences of another salt or generation share no page."""
        return self._digest(generation.to_bytes(8, "little") + salt.encode())

    def extend(self, hashes: list[bytes], root: bytes, tokens: Sequence[int], num_pages: int) -> None:
        """Appends the missing hashes of the first ``num_pages`` pages, all of whose tokens are there."""
        for first in range(len(hashes) * PAGE_SIZE, num_pages * PAGE_SIZE, PAGE_SIZE):
            before = hashes[-1] if hashes else root
            hashes.append(self._digest(before + array("I", tokens[first : first + PAGE_SIZE]).tobytes()))

    def _digest(self, content: bytes) -> bytes:
        return hashlib.blake2b(content, digest_size=_BYTES, key=self._key).digest()
