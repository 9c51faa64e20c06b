"""The engine's side: attention workers, and how a request survives them."""
