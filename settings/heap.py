"""The process's own heap, as glibc keeps it: what is kept when it is freed, and what goes back to the system.

Knows nothing of what it is used for. Other C libraries have none of these calls and need none.
"""

import ctypes

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_LARGEST_BLOCK = 32 << 20  # glibc takes no more
_KEPT_FREE = 256 << 20
_GROWN_AT_ONCE = 4 << 20


def keep_large_blocks() -> None:
    """From now on: the first touch of pages that come anew takes longer than to copy what is written to them."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_BLOCK)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_FREE)
        mallopt(_M_TOP_PAD, _GROWN_AT_ONCE)


def return_free_memory() -> None:
    """All that is free now, however scattered."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(ctypes.c_size_t(0))
