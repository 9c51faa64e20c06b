"""The process's own heap: blocks as large as answers stay in it when they are freed.

Knows nothing of what they are used for. glibc gives large free blocks back to the system, and every answer's first touch of
pages that come anew takes longer than the copy itself. glibc alone has and needs this.
"""

import ctypes

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_LARGEST_BLOCK = 32 << 20  # glibc takes no more
_KEPT_FREE = 256 << 20
_GROWN_AT_ONCE = 4 << 20


def keep_large_blocks() -> None:
    """From now on."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_BLOCK)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_FREE)
        mallopt(_M_TOP_PAD, _GROWN_AT_ONCE)
