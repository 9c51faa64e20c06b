"""A gRPC channel that follows the files its certificate is read from.

Knows nothing of what is in them. What a channel shows and whom it trusts is fixed when it is made: one that lives for weeks would
meet a peer that has come back with the certificate of long ago. So a call begins on a new channel when the files have changed;
what runs on an old one goes on there.
"""

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Self

_log = logging.getLogger(__name__)
KINDS_OF_CALLS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
_LOOK_S = 1.0

Files = tuple[bytes, bytes, bytes]


class RenewedChannel:
    """For one thread. ``read`` raises ValueError while the files cannot be had."""

    def __init__(self, read: Callable[[], Files], connect: Callable[[Files], Any]) -> None:
        self._read, self._connect = read, connect
        self._files = read()
        self._channel = connect(self._files)
        self._old: list[Any] = []  # closed with this one: renewals are rare
        self._look_at = time.monotonic() + _LOOK_S

    def __getattr__(self, name: str) -> Any:
        if name not in KINDS_OF_CALLS:
            return getattr(self._channel, name)
        return lambda *place, **named: partial(self._call, name, place, named)

    def close(self) -> None:
        for channel in (*self._old, self._channel):
            channel.close()

    def _call(self, kind: str, place: Any, named: Any, *sent: Any, **how: Any) -> Any:
        self._look()
        return getattr(self._channel, kind)(*place, **named)(*sent, **how)

    def _look(self) -> None:
        if time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + _LOOK_S
        try:
            files = self._read()
        except ValueError as error:
            _log.warning("calls go on with the certificate that there was: %s", error)
            return
        if files != self._files:
            self._old.append(self._channel)
            self._files, self._channel = files, self._connect(files)


class RenewedAioChannel(RenewedChannel):
    """The same for one event loop."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *ending: object) -> None:
        await self.close()

    async def close(self) -> None:  # type: ignore[override]
        for channel in (*self._old, self._channel):
            await channel.close()
