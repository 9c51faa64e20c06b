"""The heads of a checkpoint's files as a stream of messages. Knows nothing of who asks."""

import asyncio
from collections.abc import AsyncIterator, Sequence

from ...checkpoint.checkpoint_headers import Outline
from ...checkpoint.errors import CheckpointError
from ...proto.errors import Code, FleetError
from ...proto.generated import membership_pb2 as pb

_PIECE_BYTES = 1 << 20


async def head_pieces(outline: Outline | None, files: Sequence[str]) -> AsyncIterator[pb.HeadPiece]:
    """Raises FleetError: UNSUPPORTED without an outline, BAD_REQUEST for files that it has not got."""
    if outline is None:
        raise FleetError(Code.UNSUPPORTED, "this controller has no checkpoint to read")
    try:
        heads = await asyncio.to_thread(outline.heads, files)
    except CheckpointError as error:
        raise FleetError(Code.BAD_REQUEST, str(error)) from error
    for file, head in heads.items():
        size = len(head.content)
        for start in range(0, size, _PIECE_BYTES):
            data = head.content[start : start + _PIECE_BYTES]
            yield pb.HeadPiece(file=file, file_bytes=head.file_bytes, head_bytes=size, data=data)
