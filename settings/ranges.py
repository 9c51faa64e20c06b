"""Sets of small numbers as people write them: ``0-15,40``; knows nothing of what they number."""

import re
from collections.abc import Iterable
from itertools import pairwise


def parse_ranges(name: str, text: str) -> tuple[int, ...]:
    """``"0-15,40"`` → the numbers, ascending, each once. Raises ValueError naming the setting and the part."""
    chosen: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if first > last:
            raise ValueError(f"{name}: {part!r} is neither a number nor a range such as 0-15")
        if last - first >= 1 << 20:
            raise ValueError(f"{name}: {part!r} is longer than {1 << 20} numbers")
        chosen.update(range(first, last + 1))
    return tuple(sorted(chosen))


def format_ranges(numbers: Iterable[int]) -> str:
    """The shortest text of the numbers, which ascend; the inverse of ``parse_ranges``."""
    held = list(numbers)
    breaks = [place for place, (left, right) in enumerate(pairwise(held), 1) if right != left + 1]
    runs = (held[start:stop] for start, stop in pairwise([0, *breaks, len(held)]) if stop > start)
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
