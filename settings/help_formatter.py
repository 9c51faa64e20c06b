"""Help of 80 columns on every terminal.

Knows nothing of any command, and imports nothing that would make ``--help`` slow.
"""

import argparse


class HelpFormatter(argparse.HelpFormatter):
    """Writes the help of every command."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26, width=80)
