"""SHA-256 of files, and the ``SHA256SUMS`` that says what they must be.

Knows nothing of HTTP. The format is coreutils': 64 hex digits, a space, a space or ``*``, the name.
"""

import hashlib
import re
from pathlib import Path

from .errors import PullError

SUMS_FILE = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](?:\./)?(.+)")


def parse_sums(text: str, source: str) -> dict[str, str]:
    """Name to hex digest; empty lines and ``#`` lines are skipped."""
    sums: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise PullError(f"{source}: line {number}: {line[:100]!r} is not 64 hex digits, two spaces and a name")
        digest, name = match[1].lower(), match[2]
        if sums.setdefault(name, digest) != digest:
            raise PullError(f"{source}: line {number}: {name!r} has another checksum further up")
    return sums


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
