"""The prefill budget: how many prompt tokens a step takes along while answers decode, so that those do not stall.

Knows nothing of sequences or tensors. A step with both shall take ``target_s``, or twice a step of decoding alone if that is
longer: prompts then get at least half of the time on any machine. The budget follows what steps took.
"""

_LEAST = 16
_WEIGHT = 0.2  # of the newest step of answers alone
_GROWTH, _SHRINKAGE = 1.25, 0.5  # the most that one step changes the number by


class PrefillBudget:
    """``limit`` is how many tokens of new prompts go into a step with answers."""

    def __init__(self, target_s: float, most: int) -> None:
        self._target_s, self._least, self._most = target_s, min(_LEAST, most), most
        self._limit = float(most)
        self._alone_s = 0.0

    @property
    def limit(self) -> int:
        return int(self._limit)

    def took_decode_only(self, seconds: float) -> None:
        """A step of one token for each answer, beside which no prompt was read."""
        before = self._alone_s or seconds
        counted = min(seconds, 2 * before)  # one that waited for a shard says little
        self._alone_s = before + _WEIGHT * (counted - before)

    def took(self, num_prompt_tokens: int, seconds: float, limited: bool) -> None:
        """A step with so many tokens of new prompts, more than the limit unless it was ``limited``."""
        aim = max(self._target_s, 2 * self._alone_s)
        if seconds > aim:  # of how many were far too many, an unlimited step says more
            share = max(aim / seconds, _SHRINKAGE if limited else 0.0)
            self._set(min(self._limit, num_prompt_tokens * share))
        elif limited and num_prompt_tokens >= self.limit:
            self._set(self._limit * min(aim / seconds, _GROWTH))

    def _set(self, limit: float) -> None:
        self._limit = min(max(limit, self._least), self._most)
