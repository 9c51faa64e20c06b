"""Who lacks files is told by the controller what is in them, or why not."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from expertfleet.checkpoint.checkpoint_headers import Outline
from expertfleet.checkpoint.file_headers import read_head
from expertfleet.checkpoint.files import CheckpointFiles
from expertfleet.cluster.commands.gateway_process import claim_port
from expertfleet.cluster.commands.resource_plan import fleet_shape
from expertfleet.cluster.controller.controller import Controller
from expertfleet.cluster.controller.desired_state import DesiredState
from expertfleet.expert_workers.fetch_headers import ask_heads
from expertfleet.membership import security
from expertfleet.proto.errors import Code, FleetError
from expertfleet.proto.generated import membership_pb2 as pb
from expertfleet.proto.generated import membership_pb2_grpc as rpc
from expertfleet.transport.io_thread import IoThread

Serve = Callable[..., str]


@pytest.fixture
def io() -> Iterator[IoThread]:
    thread = IoThread("test-io")
    yield thread
    thread.stop()


@pytest.fixture
def controller(io: IoThread, small_checkpoint: Path) -> Iterator[Serve]:
    started: list[Controller] = []

    def start(outline: Outline | None) -> str:
        with CheckpointFiles.open(small_checkpoint) as files:
            shape = fleet_shape(files, "bfloat16")
        started.append(Controller(shape, DesiredState.first(1, 1, 1.0), outline=outline))
        io.submit(started[-1].start())
        return started[-1].address

    yield start
    for each in started:
        io.submit(each.stop())


def files_of(model: Path) -> list[str]:
    return sorted(path.name for path in model.glob("*.safetensors"))


@pytest.mark.parametrize("token", ["", "a token of these tests"])
def test_heads_come_as_they_lie_on_disk(
    controller: Serve, small_checkpoint: Path, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(security, "_security", security.WireSecurity(token=token))
    files = files_of(small_checkpoint)
    found = ask_heads(controller(Outline(small_checkpoint)), files)
    assert found == {file: read_head(small_checkpoint / file) for file in files}


def test_what_the_controller_cannot_say_it_says_at_once(controller: Serve, small_checkpoint: Path) -> None:
    with pytest.raises(FleetError, match=r"strange\.safetensors: is no file of the checkpoint") as caught:
        ask_heads(controller(Outline(small_checkpoint)), ["strange.safetensors"])
    assert caught.value.code is Code.BAD_REQUEST
    with pytest.raises(FleetError, match="this controller has no checkpoint to read") as caught:
        ask_heads(controller(None), files_of(small_checkpoint))
    assert caught.value.code is Code.UNSUPPORTED


def test_a_controller_that_is_away_is_waited_for_and_then_named() -> None:
    address = f"127.0.0.1:{claim_port('127.0.0.1', 0, '')}"
    with pytest.raises(FleetError, match=f"controller {address} does not say what lies in 1 missing files") as caught:
        ask_heads(address, ["a.safetensors"], wait_s=1.5)
    assert caught.value.code is Code.LANE_LOST


class Liar(rpc.MembershipServicer):
    def __init__(self, *pieces: pb.HeadPiece) -> None:
        self.pieces = pieces

    async def ReadHeads(self, request: pb.ReadHeadsRequest, context: grpc.aio.ServicerContext) -> Any:
        for piece in self.pieces:
            yield piece


def serve(io: IoThread, servicer: rpc.MembershipServicer | None) -> tuple[grpc.aio.Server, str]:
    async def start() -> tuple[grpc.aio.Server, str]:
        server = security.make_server(())
        if servicer is not None:
            rpc.add_MembershipServicer_to_server(servicer, server)
        port = security.add_port(server, "127.0.0.1", 0)
        await server.start()
        return server, f"127.0.0.1:{port}"

    return io.submit(start())


@pytest.mark.parametrize(
    "pieces",
    [
        (),
        (pb.HeadPiece(file="b.safetensors", file_bytes=10, head_bytes=1, data=b"x"),),
        (pb.HeadPiece(file="a.safetensors", file_bytes=10, head_bytes=2, data=b"x"),),
        (pb.HeadPiece(file="a.safetensors", file_bytes=10, head_bytes=1, data=b"xy"),),
        (pb.HeadPiece(file="a.safetensors", file_bytes=1 << 40, head_bytes=1 << 40, data=b"x"),),
    ],
)
def test_pieces_that_make_no_head_are_refused(io: IoThread, pieces: tuple[pb.HeadPiece, ...]) -> None:
    server, address = serve(io, Liar(*pieces))
    with pytest.raises(FleetError) as caught:
        ask_heads(address, ["a.safetensors"])
    assert caught.value.code is Code.BAD_FRAME
    io.submit(server.stop(None))


def test_a_controller_of_the_version_before_is_named(io: IoThread) -> None:
    server, address = serve(io, None)
    with pytest.raises(FleetError, match=r"the first is a\.safetensors: it is of an older version"):
        ask_heads(address, ["a.safetensors"])
    io.submit(server.stop(None))
