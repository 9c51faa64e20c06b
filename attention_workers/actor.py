"""The Ray actor around an attention worker: Ray places, starts and restarts it, and carries no token.

Knows nothing of the fleet. Construction starts the server's threads and returns, so a restarted actor is back at once.
"""

from .config import AttentionConfig
from .server import AttentionServer


class AttentionActor:
    """One attention worker in the actor's own process."""

    def __init__(self, config: AttentionConfig) -> None:
        self._server = AttentionServer(config)
        self._server.start()

    def address(self) -> str:
        return self._server.address

    def ping(self) -> None:
        """Raises RuntimeError with the reason once the worker has failed."""
        if self._server.tenancy.state == "failed":
            raise RuntimeError(self._server.tenancy.error)

    def drain(self, timeout_s: float) -> bool:
        return self._server.stop(timeout_s)
