"""The latent cache: one page is one attention split of one sequence, or of several that begin alike.

Knows nothing of sequences beyond the pages they hold. A position stores kv_lora_rank + qk_rope_head_dim values a layer:
the normalised latent, then the rotated shared key. A page is zeroed before its first position is written, so that the
unused tail of a split is finite whoever had the page before.
"""

from collections import OrderedDict
from collections.abc import Iterable

import torch

PAGE = 256


class PageAllocator:
    """Hands out page numbers; the lowest blank ones first, so that a small load touches little memory.

    A page whose content has been given a name stays known by it, and may be shared, even after its last holder; it is handed
    out as a new one when no blank page is left, the longest unused first.
    """

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._blank = list(range(num_pages - 1, -1, -1))
        self._holders = [0] * num_pages
        self._page_of: dict[bytes, int] = {}
        self._name_of: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # named, without a holder

    @property
    def num_free(self) -> int:
        return len(self._blank) + len(self._idle)

    @property
    def num_idle(self) -> int:
        """Of the free ones, those that are still known by a name."""
        return len(self._idle)

    @staticmethod
    def needed(num_positions: int) -> int:
        return -(-num_positions // PAGE)

    def take(self, count: int) -> list[int]:
        """New pages, each with one holder."""
        assert count <= self.num_free, (count, self.num_free)
        pages = [self._blank.pop() if self._blank else self._forget() for _ in range(count)]
        for page in pages:
            self._holders[page] = 1
        return pages

    def share(self, names: Iterable[bytes]) -> list[int]:
        """The pages known by the first of ``names``, up to the first that is not; each has a holder more."""
        pages: list[int] = []
        for name in names:
            if (page := self._page_of.get(name)) is None:
                break
            self._holders[page] += 1
            self._idle.pop(page, None)
            pages.append(page)
        return pages

    def name(self, page: int, name: bytes) -> None:
        """The page is whole, and what it holds is called ``name``; where another page is called so, that one stays it."""
        if name not in self._page_of and page not in self._name_of:
            self._page_of[name], self._name_of[page] = page, name

    def unname(self, pages: list[int]) -> None:
        """Held pages that nobody else shall share from now on."""
        for page in pages:
            if (name := self._name_of.pop(page, None)) is not None:
                del self._page_of[name]

    def give_back(self, pages: list[int]) -> None:
        for page in reversed(pages):
            self._holders[page] -= 1
            if self._holders[page]:
                continue
            if page in self._name_of:
                self._idle[page] = None
            else:
                self._blank.append(page)

    def _forget(self) -> int:
        page, _ = self._idle.popitem(last=False)
        del self._page_of[self._name_of.pop(page)]
        return page


class LatentCache:
    """[num_layers, num_pages, PAGE, width], in the worker's dtype."""

    def __init__(self, num_layers: int, num_pages: int, width: int, dtype: torch.dtype) -> None:
        self._pages = torch.zeros(num_layers, num_pages, PAGE, width, dtype=dtype)
        self._flat = self._pages.view(num_layers, num_pages * PAGE, width)

    def clear(self, pages: list[int]) -> None:
        """Zeroes pages, in all layers."""
        if pages:
            self._pages[:, pages] = 0

    def write(self, layer: int, slots: torch.Tensor, latents: torch.Tensor) -> None:
        """``latents`` [T, width] to slot ids [T] int64 (page × PAGE + offset)."""
        self._flat[layer].index_copy_(0, slots, latents)

    def pages(self, layer: int, pages: torch.Tensor | slice) -> torch.Tensor:
        """[P, PAGE, width]: a copy of the pages [P] int64, or a view of a slice of them."""
        return self._pages[layer, pages]

    def gather(self, layer: int, pages: list[int], num_positions: int) -> torch.Tensor:
        """[S, width] contiguous, S ≥ ``num_positions``: a view where the pages lie side by side, else a copy."""
        used = pages[: PageAllocator.needed(num_positions)]
        if used == list(range(used[0], used[0] + len(used))):
            return self._flat[layer, used[0] * PAGE : (used[-1] + 1) * PAGE]
        return self._pages[layer, torch.tensor(used)].view(len(used) * PAGE, -1)

    @staticmethod
    def page_bytes(num_layers: int, width: int, dtype: torch.dtype) -> int:
        return num_layers * PAGE * width * dtype.itemsize


def slots_of(pages: list[int], first: int, count: int) -> list[int]:
    """Slot ids of ``count`` positions from ``first`` on."""
    return [pages[position // PAGE] * PAGE + position % PAGE for position in range(first, first + count)]
