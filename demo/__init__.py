"""The demonstration: one command that starts a small fleet and talks to it."""
