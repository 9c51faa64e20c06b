"""What every frame begins with, and the parts that frames are made of.

Knows nothing of any frame's meaning. Little endian. A frame starts with a 16-byte prefix: magic ``XFLT``, wire version u8, kind
u8, two zero bytes, frame id u64. An end speaks its newest version and the one before. Its HELLO bears its newest; the newest that
both speak is the lane's, which all other frames bear. HELLO and ERROR are read whatever they bear, as two ends must be able to
say why they do not talk: every version lays them out alike, but that a newer HELLO may have more keys.
"""

import enum
import struct
from typing import Final, TypeAlias

import torch

from .errors import Code, FleetError

WIRE_VERSION = 2
OLDEST_WIRE_VERSION = 1
PAIRS_SINCE = 2  # the wire version whose frames may announce rows that travel beside the lane
NO_PAIR: Final = "none"
MAGIC = b"XFLT"
PREFIX = struct.Struct("<4sBBHQ")
_DTYPES = {1: torch.bfloat16, 2: torch.float32}
DTYPE_CODES = {dtype: code for code, dtype in _DTYPES.items()}

Buffer: TypeAlias = bytes | bytearray | memoryview  # of bytes


class Kind(enum.IntEnum):
    HELLO = 1
    DISPATCH = 2
    RESULT = 3
    ERROR = 4
    CANCEL = 5
    DISPATCH_SHM = 6
    RESULT_SHM = 7
    GROUP_OFFER = 8
    DISPATCH_PG = 9
    RESULT_PG = 10
    ACK_PG = 11


def prefix(version: int, kind: Kind, frame_id: int) -> bytes:
    return PREFIX.pack(MAGIC, version, kind, 0, frame_id)


def frame_id_of(frame: Buffer) -> int:
    """The id in the prefix, 0 where there is none: what an error about an undecodable frame refers to."""
    if len(frame) < PREFIX.size or frame[:4] != MAGIC:
        return 0
    return int(PREFIX.unpack_from(frame)[4])


def dtype_of(code: int) -> torch.dtype:
    if code not in _DTYPES:
        raise bad(f"unknown dtype code {code}")
    return _DTYPES[code]


def at_least(frame: Buffer, size: int) -> None:
    if len(frame) < size:
        raise bad(f"{len(frame)} bytes; its header alone has {size}")


def expect(frame: Buffer, size: int) -> None:
    if len(frame) != size:
        raise bad(f"{len(frame)} bytes; its header announces {size}")


def bad(what: str) -> FleetError:
    return FleetError(Code.BAD_FRAME, f"malformed frame: {what}")
