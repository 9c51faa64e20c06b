"""``python -m expertfleet.gateway``: the gateway as a process of its own."""

import argparse
import sys
from collections.abc import Sequence

from .command import fill_parser, run


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m expertfleet.gateway", description=__doc__.splitlines()[0])
    fill_parser(parser)
    return run(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
