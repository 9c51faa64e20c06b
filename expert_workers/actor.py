"""The Ray actor around an expert shard: Ray places, starts and restarts it, and carries no token.

Knows nothing of the fleet. Construction starts the server's threads and returns, so a restarted actor is back at once.
"""

from .config import ExpertConfig
from .server import ExpertServer


class ExpertActor:
    """One shard in the actor's own process."""

    def __init__(self, config: ExpertConfig) -> None:
        self._server = ExpertServer(config)
        self._server.start()

    def address(self) -> str:
        return self._server.address

    def ping(self) -> None:
        """Raises RuntimeError with the reason once the worker has failed."""
        if self._server.tenancy.state == "failed":
            raise RuntimeError(self._server.tenancy.error)

    def drain(self, timeout_s: float) -> bool:
        return self._server.stop(timeout_s)
