"""What the ``expertfleet`` command does, verb by verb."""
