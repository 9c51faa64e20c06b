"""What lies in the checkpoint's files that a shard has not got: the controller tells it.

Knows nothing of experts. Whatever is told enters the shard's fingerprint, so what is wrong ends where the shard registers. A
controller that is away, or on its way, is waited for.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import closing

import grpc

from ..checkpoint.file_headers import MAX_HEAD_BYTES, RawHead
from ..membership import security
from ..proto.errors import Code, FleetError, from_call
from ..proto.generated import membership_pb2 as pb
from ..proto.generated import membership_pb2_grpc as rpc

_logger = logging.getLogger(__name__)
_CALL_S = 60.0
_RETRY_S = 1.0
_WAIT_S = 600.0


def ask_heads(controller: str, files: Sequence[str], wait_s: float = _WAIT_S) -> Mapping[str, RawHead]:
    """Raises FleetError when the controller cannot say, or is away for ``wait_s``."""
    give_up, said = time.monotonic() + wait_s, False
    with closing(security.open_blocking_channel(controller, [("grpc.enable_http_proxy", 0)])) as channel:
        while True:
            try:
                return _read(rpc.MembershipStub(channel), files)
            except grpc.RpcError as error:
                told = from_call(error)
                if error.code() is grpc.StatusCode.UNIMPLEMENTED and told.code is not Code.UNSUPPORTED:
                    told = FleetError(Code.UNSUPPORTED, "it is of an older version")
                if told.code is not Code.LANE_LOST or time.monotonic() > give_up:
                    what = f"{len(files)} missing files, the first is {files[0]}"
                    why = f"controller {controller} does not say what lies in {what}: {told}"
                    raise FleetError(told.code, why) from error
                if not said:
                    _logger.warning("waiting for controller %s, which knows the missing files: %s", controller, told)
                said = True
            time.sleep(_RETRY_S)


def _read(stub: rpc.MembershipStub, files: Sequence[str]) -> dict[str, RawHead]:
    contents: dict[str, bytearray] = {}
    sizes: dict[str, tuple[int, int]] = {}
    for piece in stub.ReadHeads(pb.ReadHeadsRequest(files=files), timeout=_CALL_S):
        size = sizes.setdefault(piece.file, (piece.file_bytes, piece.head_bytes))
        content = contents.setdefault(piece.file, bytearray())
        content += piece.data
        if piece.file not in files or not len(content) <= size[1] <= MAX_HEAD_BYTES:
            told = f"{len(content)} bytes of {size[1]} of the head of {piece.file!r}, at most {MAX_HEAD_BYTES} may come"
            raise FleetError(Code.BAD_FRAME, told)
    for file in files:
        if len(contents.get(file, b"")) != sizes.get(file, (0, -1))[1]:
            raise FleetError(Code.BAD_FRAME, f"the head of {file!r} did not come whole")
    return {file: RawHead(bytes(contents[file]), sizes[file][0]) for file in files}
