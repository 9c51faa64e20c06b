"""What a shard shall hold, as the newest order says. Knows nothing of who gives orders and of who carries them out."""

import threading

from ..membership.epoch import ExpertSet


class LatestAssignment:
    """One order at a time: a newer one replaces what was not carried out. For any threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._newest: ExpertSet | None = None
        self._taken: ExpertSet | None = None
        self._closed = False

    def put(self, wanted: ExpertSet) -> None:
        with self._changed:
            self._newest = wanted
            self._changed.notify_all()

    def take(self) -> ExpertSet | None:
        """Waits for an order that was not taken yet; None after ``close``."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._newest not in (None, self._taken))
            self._taken = self._newest
            return None if self._closed else self._taken

    def is_stale(self) -> bool:
        """Whether what was taken last is no longer what is wanted."""
        with self._changed:
            return self._closed or self._newest != self._taken

    def wait_until_stale(self, timeout_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._closed or self._newest != self._taken, timeout_s)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
