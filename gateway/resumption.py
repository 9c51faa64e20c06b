"""What becomes of an answer whose worker is lost, as the operator wants it.

Knows nothing of workers and of how an answer is continued (``generation.py``).
"""

from dataclasses import dataclass
from typing import Literal

OnInexact = Literal["fail", "continue"]


@dataclass(frozen=True)
class Resumption:
    worker_wait_s: float  # for another worker, when there is none
    on_inexact: OnInexact  # when only workers of another numerics class are left
    max_worker_deaths: int  # in a row, while it was running
