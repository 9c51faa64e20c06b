"""Paged KV cache of MLA latents: a page is one attention split of one sequence, or of several that begin alike.

Knows nothing of sequences beyond the pages they hold. A position stores kv_lora_rank + qk_rope_head_dim values a layer:
the normalised latent, then the rotated shared key. A page is zeroed before its first position is written, so that the
unused tail of a split is finite whoever had the page before.
"""

from collections import OrderedDict
from collections.abc import Iterable

import torch

PAGE_SIZE = 256


class PageAllocator:
    """Hands out page numbers; the lowest free ones first, so that a small load touches little memory.

    A registered page is found by the hash of its content and shared, even after its last sequence has ended. Such a page is evicted,
    the longest unused first, when no other page is free.
    """

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._free = list(range(num_pages - 1, -1, -1))
        self._ref_counts = [0] * num_pages
        self._page_by_hash: dict[bytes, int] = {}
        self._hash_by_page: dict[int, bytes] = {}
        self._evictable: OrderedDict[int, None] = OrderedDict()  # registered, used by no sequence

    @property
    def num_free(self) -> int:
        return len(self._free) + len(self._evictable)

    @property
    def num_evictable(self) -> int:
        """Of the free pages, those that a prompt may still match."""
        return len(self._evictable)

    @staticmethod
    def needed(num_positions: int) -> int:
        return -(-num_positions // PAGE_SIZE)

    def take(self, count: int) -> list[int]:
        """New pages, each with a reference count of one."""
        assert count <= self.num_free, (count, self.num_free)
        pages = [self._free.pop() if self._free else self._evict() for _ in range(count)]
        for page in pages:
            self._ref_counts[page] = 1
        return pages

    def match(self, hashes: Iterable[bytes]) -> list[int]:
        """The registered pages of ``hashes``, up to the first hash without one; each page's reference count grows by one."""
        pages: list[int] = []
        for page_hash in hashes:
            if (page := self._page_by_hash.get(page_hash)) is None:
                break
            self._ref_counts[page] += 1
            self._evictable.pop(page, None)
            pages.append(page)
        return pages

    def register(self, page: int, page_hash: bytes) -> None:
        """Makes a full page findable by its content's hash; a page that is registered with that hash already stays the one."""
        if page_hash not in self._page_by_hash and page not in self._hash_by_page:
            self._page_by_hash[page_hash], self._hash_by_page[page] = page, page_hash

    def unregister(self, pages: list[int]) -> None:
        """No further prompt matches these pages."""
        for page in pages:
            if (page_hash := self._hash_by_page.pop(page, None)) is not None:
                del self._page_by_hash[page_hash]

    def give_back(self, pages: list[int]) -> None:
        for page in reversed(pages):
            self._ref_counts[page] -= 1
            if self._ref_counts[page]:
                continue
            if page in self._hash_by_page:
                self._evictable[page] = None
            else:
                self._free.append(page)

    def _evict(self) -> int:
        page, _ = self._evictable.popitem(last=False)
        del self._page_by_hash[self._hash_by_page.pop(page)]
        return page


class LatentCache:
    """[num_layers, num_pages, PAGE_SIZE, width], in the worker's dtype."""

    def __init__(self, num_layers: int, num_pages: int, width: int, dtype: torch.dtype) -> None:
        self._pages = torch.zeros(num_layers, num_pages, PAGE_SIZE, width, dtype=dtype)
        self._flat = self._pages.view(num_layers, num_pages * PAGE_SIZE, width)

    def clear(self, pages: list[int]) -> None:
        """Zeroes pages, in all layers."""
        if pages:
            self._pages[:, pages] = 0

    def write(self, layer: int, slots: torch.Tensor, latents: torch.Tensor) -> None:
        """``latents`` [T, width] to slot ids [T] int64 (page × PAGE_SIZE + offset)."""
        self._flat[layer].index_copy_(0, slots, latents)

    def pages(self, layer: int, pages: torch.Tensor | slice) -> torch.Tensor:
        """[P, PAGE_SIZE, width]: a copy of the pages [P] int64, or a view of a slice of them."""
        return self._pages[layer, pages]

    def gather(self, layer: int, pages: list[int], num_positions: int) -> torch.Tensor:
        """[S, width] contiguous, S ≥ ``num_positions``: a view where the pages lie side by side, else a copy."""
        used = pages[: PageAllocator.needed(num_positions)]
        if used == list(range(used[0], used[0] + len(used))):
            return self._flat[layer, used[0] * PAGE_SIZE : (used[-1] + 1) * PAGE_SIZE]
        return self._pages[layer, torch.tensor(used)].view(len(used) * PAGE_SIZE, -1)

    @staticmethod
    def page_bytes(num_layers: int, width: int, dtype: torch.dtype) -> int:
        return num_layers * PAGE_SIZE * width * dtype.itemsize


def slots_of(pages: list[int], first: int, count: int) -> list[int]:
    """Slot ids of ``count`` positions from ``first`` on."""
    return [pages[position // PAGE_SIZE] * PAGE_SIZE + position % PAGE_SIZE for position in range(first, first + count)]
