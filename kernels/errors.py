"""What the arithmetic refuses. Knows nothing of workers; nothing here crosses a wire."""


class ForeignLibraryError(OSError):
    """The compiled library is not the one of this package; the message names what differs."""


class KernelError(RuntimeError):
    """A shape, dtype, backend or machine that cannot be served exactly; the message names the value and the limit."""
