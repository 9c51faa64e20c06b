"""Ends a text at the first stop string, holding back what may become one.

Knows nothing of tokens. Of each text pushed, what can no longer be part of a stop string comes out at once.
"""

from collections.abc import Sequence


class StopStrings:
    def __init__(self, stops: Sequence[str], *, keep: bool = False) -> None:
        self.matched: str | None = None
        self._stops = stops
        self._keep = keep
        self._held = ""

    def push(self, text: str) -> str:
        """The part of the text so far that is sure to be shown; after a match, nothing."""
        if self.matched is not None or not self._stops:
            return text if self.matched is None else ""
        text = self._held + text
        found = [(at, -len(stop), stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            at, _, self.matched = min(found)
            self._held = ""
            return text[: at + len(self.matched)] if self._keep else text[:at]
        sure = len(text) - self._num_held(text)
        self._held = text[sure:]
        return text[:sure]

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held

    def _num_held(self, text: str) -> int:
        """Length of the longest end of ``text`` that begins a stop string."""
        longest = min(len(text), max(map(len, self._stops)) - 1)
        for length in range(longest, 0, -1):
            end = text[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0
