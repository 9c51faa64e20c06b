"""What becomes of an answer whose worker is lost, as the operator wants it.

Knows nothing of workers and of how an answer is continued (``failover.py``).
"""

from dataclasses import dataclass
from typing import Literal

from ...settings.reader import option, within

OnInexact = Literal["fail", "continue"]


@dataclass(frozen=True)
class FailoverSettings:
    worker_wait_s: float  # for another worker, when there is none
    on_inexact: OnInexact  # when only workers of another numerics class are left
    max_worker_deaths: int  # in a row, while it was running


@dataclass(frozen=True, kw_only=True)
class FailoverOptions:
    """The settings of this, which a gateway and a whole fleet have."""

    worker_wait_s: float = option(30.0, "seconds that a request waits for an attention worker when all are lost")
    on_inexact: OnInexact = option(
        "fail",
        "an answer that can only go on in another numerics class, with other last bits: fail ends it with an error, "
        "continue goes on and says so",
    )
    max_worker_deaths: int = option(
        2, "attention workers that may die in a row while a request runs on them, before it ends with an error"
    )

    @property
    def failover(self) -> FailoverSettings:
        return FailoverSettings(self.worker_wait_s, self.on_inexact, self.max_worker_deaths)

    def check_failover(self) -> None:
        """For ``__post_init__``."""
        within("worker_wait_s", self.worker_wait_s, 0, 86400)
        within("max_worker_deaths", self.max_worker_deaths, 1, 1000)
