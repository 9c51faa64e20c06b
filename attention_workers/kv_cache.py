"""The latent cache: one page is one attention split of one sequence.

Knows nothing of sequences beyond the pages they hold. A position stores kv_lora_rank + qk_rope_head_dim values a layer:
the normalised latent, then the rotated shared key. A page is zeroed before its first position is written, so that the
unused tail of a split is finite whoever had the page before.
"""

import torch

PAGE = 256


class PageAllocator:
    """Hands out page numbers; the lowest free ones first, so that a small load touches little memory."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._free = list(range(num_pages - 1, -1, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    @staticmethod
    def needed(num_positions: int) -> int:
        return -(-num_positions // PAGE)

    def take(self, count: int) -> list[int]:
        assert count <= len(self._free), (count, len(self._free))
        return [self._free.pop() for _ in range(count)]

    def give_back(self, pages: list[int]) -> None:
        self._free.extend(reversed(pages))


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
