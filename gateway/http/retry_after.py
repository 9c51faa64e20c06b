"""How long a client that is sent away shall wait before it asks again.

Knows nothing of requests. Where something is missing, the setting says it. Where workers have too many requests, it is as long as those
that were taken have waited lately for their first token: then all that waits now has had its turn. Some clients are told up to twice as
long, or all that were sent away at once would come back at once.
"""

import math
import random
from collections.abc import Sequence

from .errors import OVERLOADED, ApiError

MOST_S = 60  # OpenAI's client obeys no longer one


class RetryAfter:
    def __init__(self, least_s: int, first_token_waits: Sequence[float]) -> None:
        """``first_token_waits`` grows and forgets; what is in it is recent."""
        self._least_s = least_s
        self._waits_s = first_token_waits

    def seconds(self, error: ApiError) -> int:
        if error.code != OVERLOADED:
            return self._least_s
        mean_s = sum(self._waits_s) / max(1, len(self._waits_s))
        once = max(self._least_s, math.ceil(mean_s))
        return max(self._least_s, min(MOST_S, random.SystemRandom().randint(once, 2 * once)))
