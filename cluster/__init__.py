"""The composition root: Ray actors, controller, configuration, and the `expertfleet` command."""
