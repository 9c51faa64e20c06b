"""What becomes of an answer whose worker is lost, as the operator wants it.

Knows nothing of workers and of how an answer is continued (``failover.py``).
"""

from dataclasses import dataclass
from typing import Literal

from ...settings.option import Settings, option

OnInexact = Literal["fail", "continue"]


@dataclass(frozen=True)
class FailoverSettings:
    worker_wait_s: float  # for another worker, when there is none
    on_inexact: OnInexact  # when only workers of another numerics class are left
    max_worker_deaths: int  # in a row, while it was running


@dataclass(frozen=True, kw_only=True)
class FailoverOptions(Settings):
    """The settings of this, which a gateway and a whole fleet have."""

    worker_wait_s: float = option(
        30.0,
        "seconds that a request waits for an attention worker when all are lost",
        group="failure",
        range=(0, 86_400),
    )
    on_inexact: OnInexact = option(
        "fail",
        "an answer that can only go on in another numerics class, with other last bits: fail ends it with an error, "
        "continue goes on and says so",
        group="failure",
    )
    max_worker_deaths: int = option(
        2,
        "attention workers that may die in a row while a request runs on them, before it ends with an error",
        group="failure",
        range=(1, 1000),
    )

    @property
    def failover(self) -> FailoverSettings:
        return FailoverSettings(self.worker_wait_s, self.on_inexact, self.max_worker_deaths)
