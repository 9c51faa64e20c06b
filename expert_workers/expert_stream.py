"""One expert's weights as a stream of pieces: made by the shard that has them, checked by the one that wants them.

Knows nothing of connections. The bytes are those of the checkpoint's tensors, packed codes and scales of gate, up and down. Nothing
of a stream is used before all of it is there and is what the configuration and the checksum say.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence

import torch

from ..checkpoint.model_config import CODES_PER_WORD, ModelConfig
from ..checkpoint.tensor_names import expert_projections
from ..kernels.expert_layer import ExpertWeights
from ..proto.errors import Code, FleetError
from ..proto.generated import expert_pb2 as pb

PIECE_BYTES = 1 << 20
_DTYPES = {"I32": torch.int32, "BF16": torch.bfloat16}


def to_pieces(config: ModelConfig, layer: int, expert: int, weights: ExpertWeights) -> Iterator[pb.ExpertPiece]:
    content = b"".join(_bytes_of(part) for projection in weights for part in projection)
    header = pb.ExpertPiece(tensors=_tensors(config, layer, expert), sha256=hashlib.sha256(content).digest())
    yield header
    for start in range(0, len(content), PIECE_BYTES):
        yield pb.ExpertPiece(data=content[start : start + PIECE_BYTES])


def from_pieces(config: ModelConfig, layer: int, expert: int, pieces: Iterable[pb.ExpertPiece]) -> ExpertWeights:
    """Raises FleetError BAD_FRAME for anything that is not this expert of this model, whole."""
    stream = iter(pieces)
    header = next(stream, pb.ExpertPiece())
    tensors = _tensors(config, layer, expert)
    for found, wanted in zip(header.tensors, tensors, strict=False):
        if found != wanted:
            raise FleetError(Code.BAD_FRAME, f"tensor {_shown(found)} came, wanted {_shown(wanted)}")
    if len(header.tensors) != len(tensors):
        raise FleetError(Code.BAD_FRAME, f"{len(header.tensors)} tensors came, an expert has {len(tensors)}")
    content = bytearray()
    for piece in stream:
        if len(piece.data) > PIECE_BYTES or len(content) + len(piece.data) > config.expert_bytes:
            told = f"a piece of {len(piece.data)} bytes after {len(content)}"
            raise FleetError(Code.BAD_FRAME, f"{told}; an expert has {config.expert_bytes}, a piece {PIECE_BYTES}")
        content += piece.data
    if len(content) != config.expert_bytes:
        raise FleetError(Code.BAD_FRAME, f"{len(content)} bytes came, an expert has {config.expert_bytes}")
    if hashlib.sha256(content).digest() != header.sha256:
        raise FleetError(Code.BAD_FRAME, "the bytes that came do not have the checksum that was announced")
    return _taken_apart(tensors, content)


def _tensors(config: ModelConfig, layer: int, expert: int) -> list[pb.ExpertTensor]:
    tensors = []
    for projection in expert_projections(config, layer, expert):
        rows, columns = projection.rows, projection.columns
        tensors.append(pb.ExpertTensor(name=projection.packed, dtype="I32", shape=(rows, columns // CODES_PER_WORD)))
        tensors.append(pb.ExpertTensor(name=projection.scale, dtype="BF16", shape=(rows, columns // config.group_size)))
    return tensors


def _taken_apart(tensors: Sequence[pb.ExpertTensor], content: bytearray) -> ExpertWeights:
    parts, start = [], 0
    for tensor in tensors:
        dtype, count = _DTYPES[tensor.dtype], math.prod(tensor.shape)
        parts.append(torch.frombuffer(content, dtype=dtype, count=count, offset=start).view(*tensor.shape))
        start += count * dtype.itemsize
    gate, up, down = ((parts[place], parts[place + 1]) for place in (0, 2, 4))
    return gate, up, down


def _bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def _shown(tensor: pb.ExpertTensor) -> str:
    return f"{tensor.name} {tensor.dtype} {list(tensor.shape)}"
