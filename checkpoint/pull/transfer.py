"""One file from its address to its name on disk, however often the connection breaks.

Knows nothing of the other files. 1. What an earlier process left is continued if the server still has that version;
2. bytes are appended and hashed as they come, a chunk at a time; 3. size and checksum are compared, and only then does
the file take its name. What does not fit is deleted.
"""

import threading
from collections.abc import Callable

from .errors import PullError, RangeError, TransientError
from .partial import Partial
from .retry import Retries
from .source import Body, Remote, Source, shown


class Transfer:
    def __init__(
        self,
        source: Source,
        partial: Partial,
        name: str,
        known: Remote,
        *,
        stop: threading.Event,
        count: Callable[[int], None],
    ) -> None:
        """``known`` is what the file must be; ``count`` is told of bytes that come, and (negative) of bytes given up."""
        self._source = source
        self._partial = partial
        self._name = name
        self._address = shown(source.address(name))
        self._size = known.size
        self._sha256 = known.sha256
        self._stop = stop
        self._count = count
        self._most_bytes = partial.size

    def run(self, retries: Retries) -> str | None:
        """Returns the checksum that was compared, None if none is known."""
        retries.run(lambda: self._attempt(retries))
        if self._sha256 is not None and self._partial.sha256 != self._sha256:
            self._refuse(f"SHA-256 is {self._partial.sha256}, must be {self._sha256}")
        self._partial.finish()
        return self._sha256

    def _attempt(self, retries: Retries) -> None:
        try:
            self._read_on(retries)
        except RangeError:
            self._restart("")
            self._read_on(retries)

    def _read_on(self, retries: Retries) -> None:
        partial = self._partial
        if partial.size and partial.size == self._size:
            return
        with self._source.read(self._name, partial.size, partial.etag) as body:
            self._begin(body)
            for chunk in body.chunks:
                if self._stop.is_set():
                    raise PullError("stopped")
                partial.append(chunk)
                self._count(len(chunk))
                if partial.size > self._most_bytes:
                    self._most_bytes = partial.size
                    retries.progressed()
        if self._size is not None and partial.size < self._size:
            raise TransientError(f"{self._address}: ended after {partial.size} of {self._size} bytes")
        if self._size is not None and partial.size > self._size:
            self._refuse(f"is longer than {self._size} bytes")

    def _begin(self, body: Body) -> None:
        if body.start != self._partial.size or not body.start:
            self._restart(body.etag)
        self._sha256 = self._sha256 or body.sha256
        if self._size is None:
            self._size = body.size
        if body.size is not None and body.size != self._size:
            self._refuse(f"has {body.size} bytes, must have {self._size}")
        if self._size is None and self._sha256 is None and not body.delimited:
            self._refuse("the server names no size and no checksum is known: nothing would tell whether it is whole")

    def _restart(self, etag: str) -> None:
        self._count(-self._partial.size)
        self._partial.restart(etag)

    def _refuse(self, problem: str) -> None:
        self._partial.discard()
        raise PullError(f"{self._address}: {problem}")
