"""What the arithmetic refuses. Knows nothing of workers; nothing here crosses a wire."""


class KernelError(RuntimeError):
    """A shape, dtype, backend or machine that cannot be served exactly; the message names the value and the limit."""
