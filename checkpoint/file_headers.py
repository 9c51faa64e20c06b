"""The head of a safetensors file: its header and the first bytes of its data. With the file's size it tells files apart.

Knows nothing of checkpoints as a whole or of a network. Whoever lacks a file can be given its head by somebody who has it: the
fingerprint is made of heads, so a wrong one is found out where fingerprints are compared.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from .errors import CheckpointError
from .safetensors_header import MAX_HEADER_BYTES, Header, parse_header, read_start

# Two fine-tunes of one model have equal names and shapes.
SAMPLE_BYTES = 4096
MAX_HEAD_BYTES = 8 + MAX_HEADER_BYTES + SAMPLE_BYTES


class RawHead(NamedTuple):
    content: bytes
    file_bytes: int


class Head(NamedTuple):
    header: Header
    sample: bytes
    digest: bytes  # of all its bytes


AskHeads = Callable[[Sequence[str]], Mapping[str, RawHead]]


def read_head(path: Path) -> RawHead:
    """Raises CheckpointError."""
    return RawHead(*read_start(path, SAMPLE_BYTES))


def parse_head(path: Path, raw: RawHead) -> Head:
    """``path`` names it in errors. Raises CheckpointError."""
    header = parse_header(path, raw.content, raw.file_bytes)
    sample = raw.content[header.data_start :]
    wanted = min(SAMPLE_BYTES, header.file_bytes - header.data_start)
    if len(sample) != wanted:
        raise CheckpointError(path, "", f"{len(sample)} bytes of its data begin it, wanted {wanted}")
    return Head(header, sample, hashlib.sha256(raw.content).digest())
