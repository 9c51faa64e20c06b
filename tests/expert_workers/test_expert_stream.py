"""An expert's pieces are taken only if they are that expert, whole, and as it was announced."""

import hashlib
from pathlib import Path

import pytest
import torch

from expertfleet.checkpoint.tensors import Checkpoint
from expertfleet.expert_workers.expert_stream import PIECE_BYTES, from_pieces, to_pieces
from expertfleet.kernels.expert_layer import ExpertWeights
from expertfleet.proto.errors import Code, FleetError
from expertfleet.proto.generated import expert_pb2 as pb

LAYER, EXPERT = 2, 5


@pytest.fixture(scope="module")
def checkpoint(small_checkpoint: Path) -> Checkpoint:
    return Checkpoint.open(small_checkpoint)


@pytest.fixture
def weights(checkpoint: Checkpoint) -> ExpertWeights:
    names = checkpoint.expert_names(LAYER, EXPERT)
    gate, up, down = ((checkpoint.read(packed), checkpoint.read(scale)) for packed, scale in names)
    return gate, up, down


@pytest.fixture
def pieces(checkpoint: Checkpoint, weights: ExpertWeights) -> list[pb.ExpertPiece]:
    return list(to_pieces(checkpoint.config, LAYER, EXPERT, weights))


def refusal(checkpoint: Checkpoint, pieces: list[pb.ExpertPiece]) -> str:
    with pytest.raises(FleetError) as caught:
        from_pieces(checkpoint.config, LAYER, EXPERT, pieces)
    assert caught.value.code is Code.BAD_FRAME
    return str(caught.value)


def test_weights_arrive_bit_for_bit(
    checkpoint: Checkpoint, weights: ExpertWeights, pieces: list[pb.ExpertPiece]
) -> None:
    assert all(len(piece.data) <= PIECE_BYTES for piece in pieces)
    assert [tensor.name for tensor in pieces[0].tensors] == [
        name for pair in checkpoint.expert_names(LAYER, EXPERT) for name in pair
    ]
    found = from_pieces(checkpoint.config, LAYER, EXPERT, pieces)
    for projection, wanted in zip(found, weights, strict=True):
        assert all(torch.equal(*parts) for parts in zip(projection, wanted, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "model.layers.2.mlp.experts.6.gate_proj.weight_packed"}, "experts.6.gate_proj.* came, wanted"),
        ({"dtype": "I64"}, "weight_packed I64 .* came, wanted .* I32"),
        ({"shape": (1, 1)}, r"\[1, 1\] came, wanted"),
    ],
)
def test_another_table_of_tensors_is_refused(
    checkpoint: Checkpoint, pieces: list[pb.ExpertPiece], change: dict[str, object], message: str
) -> None:
    tensor = pieces[0].tensors[0]
    fields = {"name": tensor.name, "dtype": tensor.dtype, "shape": tensor.shape}
    tensor.CopyFrom(pb.ExpertTensor(**(fields | change)))
    with pytest.raises(FleetError, match=message):
        from_pieces(checkpoint.config, LAYER, EXPERT, pieces)


@pytest.mark.parametrize("count", [0, 5, 7])
def test_another_number_of_tensors_is_refused(checkpoint: Checkpoint, pieces: list[pb.ExpertPiece], count: int) -> None:
    tensors = [*pieces[0].tensors, pieces[0].tensors[0]][:count]
    header = pb.ExpertPiece(tensors=tensors, sha256=pieces[0].sha256)
    assert f"{count} tensors came, an expert has 6" in refusal(checkpoint, [header, *pieces[1:]])


def test_too_few_and_too_many_bytes_are_refused(checkpoint: Checkpoint, pieces: list[pb.ExpertPiece]) -> None:
    num_bytes = checkpoint.config.expert_bytes
    last = pieces[-1].data
    assert f"{num_bytes - 1} bytes came" in refusal(checkpoint, [*pieces[:-1], pb.ExpertPiece(data=last[:-1])])
    assert "a piece of 1 bytes after" in refusal(checkpoint, [*pieces, pb.ExpertPiece(data=b"\0")])
    assert "0 tensors came" in refusal(checkpoint, [])
    content = bytes(PIECE_BYTES + 1)
    assert f"a piece of {PIECE_BYTES + 1} bytes" in refusal(checkpoint, [pieces[0], pb.ExpertPiece(data=content)])


def test_bytes_that_differ_from_their_checksum_are_refused(
    checkpoint: Checkpoint, pieces: list[pb.ExpertPiece]
) -> None:
    spoiled = bytearray(pieces[1].data)
    spoiled[100] ^= 1
    pieces[1].data = bytes(spoiled)
    assert "do not have the checksum" in refusal(checkpoint, pieces)
    pieces[0].sha256 = hashlib.sha256(b"".join(piece.data for piece in pieces[1:])).digest()
    assert from_pieces(checkpoint.config, LAYER, EXPERT, pieces)
