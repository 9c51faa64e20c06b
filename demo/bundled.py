"""Where the bundled checkpoint lies."""

from pathlib import Path

NANO_K2 = Path(__file__).with_name("nano-k2")
