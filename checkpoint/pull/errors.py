"""What can end a pull, and what only ends one try."""


class PullError(ValueError):
    """The pull ends here. One line for people: file or address, what is wrong, expected and got."""


class StatusError(PullError):
    """The server refuses, and asking again will not help."""

    def __init__(self, address: str, status: int) -> None:
        super().__init__(f"{address}: HTTP {status}")
        self.status = status


class TransientError(Exception):
    """Another try may do: a broken connection, 429 or 5xx. ``pause_s`` is how long the server asks to wait."""

    def __init__(self, message: str, pause_s: float = 0.0) -> None:
        super().__init__(message)
        self.pause_s = pause_s


class RangeError(Exception):
    """The server's answer does not continue the bytes that are there; only a new start will do."""
