"""A typed error keeps its type across a gRPC status, however long it is; nobody else's status is taken for one of ours."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import grpc
import pytest

from expertfleet.proto.errors import MAX_DETAILS_BYTES, Code, FleetError, abort, from_call, from_details, shown

PRINTABLE = "".join(map(chr, range(ord(" "), ord("~") + 1))).replace("%", "")
LONG = ["x", "\n", "%", "é", "專", "😀", "\0", "\ud800", "a\nb", "x" * 4000 + "😀"]


def travelling(details: str) -> int:
    return len(quote(details, safe=PRINTABLE))


@pytest.mark.parametrize("code", list(Code))
def test_every_code_survives_its_status(code: Code) -> None:
    error = FleetError(code, "layer 3: something: odd")
    trailing = (("expertfleet-code", code.name),)
    for told in (trailing, None):
        back = from_details(error.status, error.details, told)
        assert (back.code, str(back)) == (code, "layer 3: something: odd")


@pytest.mark.parametrize("text", LONG)
@pytest.mark.parametrize("count", [1, 100, 1_300, 1_370, 4_071, 4_096, 9_000])
def test_details_are_bounded_as_they_travel_and_cut_between_characters(text: str, count: int) -> None:
    message = (text * count)[:20_000]
    error = FleetError(Code.CONTEXT_LENGTH, message)
    spelt = message.encode(errors="backslashreplace").decode()
    assert travelling(error.details) <= MAX_DETAILS_BYTES
    if travelling(f"CONTEXT_LENGTH: {spelt}") <= MAX_DETAILS_BYTES:
        assert error.details == f"CONTEXT_LENGTH: {spelt}"
    else:
        assert error.details.endswith("…")
        assert f"CONTEXT_LENGTH: {spelt}".startswith(error.details[:-1])
        assert travelling(error.details) > MAX_DETAILS_BYTES - 9 - 12, "no more is cut than must be"


def test_what_just_fits_is_whole_and_one_more_is_not() -> None:
    room = MAX_DETAILS_BYTES - len("INTERNAL: ")
    assert FleetError(Code.INTERNAL, "x" * room).details == "INTERNAL: " + "x" * room
    assert FleetError(Code.INTERNAL, "x" * (room + 1)).details == "INTERNAL: " + "x" * (room - 9) + "…"
    assert shown("x" * 78) == "'" + "x" * 78 + "'"
    assert shown("x" * 100) == "'" + "x" * 78 + "…"


class Refusing:
    """A server of real calls that refuses each with ``error``."""

    def __init__(self) -> None:
        self.error = FleetError(Code.INTERNAL, "")

    async def unary(self, request: bytes, context: Any) -> bytes:
        await abort(context, self.error)

    async def count(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield request
        await abort(context, self.error)

    async def start(self) -> tuple[grpc.aio.Server, str]:
        handlers = {
            "Unary": grpc.unary_unary_rpc_method_handler(self.unary),
            "Count": grpc.unary_stream_rpc_method_handler(self.count),
        }
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Refusing", handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server, f"127.0.0.1:{port}"


async def errors_of(channel: grpc.aio.Channel, address: str) -> list[FleetError]:
    """Of a call that awaits, a stream, and a call that blocks."""

    def block() -> FleetError:
        with grpc.insecure_channel(address) as blocking, pytest.raises(grpc.RpcError) as caught:
            blocking.unary_unary("/Refusing/Unary")(b"", timeout=5)
        return from_call(caught.value)

    with pytest.raises(grpc.aio.AioRpcError) as awaited:
        await channel.unary_unary("/Refusing/Unary")(b"", timeout=5)
    with pytest.raises(grpc.aio.AioRpcError) as streamed:
        [one async for one in channel.unary_stream("/Refusing/Count")(b"", timeout=5)]
    return [from_call(awaited.value), from_call(streamed.value), await asyncio.to_thread(block)]


@pytest.mark.parametrize("text", LONG)
def test_a_long_error_keeps_its_code_over_every_kind_of_call(text: str) -> None:
    async def run() -> None:
        refusing = Refusing()
        server, address = await refusing.start()
        async with grpc.aio.insecure_channel(address) as channel:
            for code in (Code.BAD_REQUEST, Code.OVERLOADED, Code.FRAME_TOO_LARGE, Code.WORKER_DEATHS):
                refusing.error = FleetError(code, (text * 17_000)[:17_000])
                wanted = refusing.error.details.removeprefix(f"{code.name}: ")
                for _ in range(10):
                    for error in await errors_of(channel, address):
                        assert (error.code, str(error)) == (code, wanted)
        await server.stop(None)

    asyncio.run(run())


def test_a_foreign_status_becomes_lost_or_internal() -> None:
    assert from_details(grpc.StatusCode.UNAVAILABLE, "connection refused", ()).code is Code.LANE_LOST
    assert from_details(grpc.StatusCode.INTERNAL, "boom: bang", ()).code is Code.INTERNAL
    for details in ("too big", "OVERLOADED", "NOT_HELD: what another status is for", "", None):
        error = from_details(grpc.StatusCode.RESOURCE_EXHAUSTED, details, None)
        assert error.code is Code.INTERNAL
        assert str(error).startswith("RESOURCE_EXHAUSTED: ")


def test_a_message_above_grpcs_own_limit_is_no_frame_that_we_refused() -> None:
    async def run() -> FleetError:
        server, address = await Refusing().start()
        async with grpc.aio.insecure_channel(address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary("/Refusing/Unary")(bytes(5 << 20), timeout=5)
        await server.stop(None)
        return from_call(caught.value)

    error = asyncio.run(run())
    assert error.code is Code.INTERNAL
    assert "RESOURCE_EXHAUSTED" in str(error)


def test_the_code_in_the_metadata_is_believed_whatever_became_of_the_details() -> None:
    trailing = (("other", b"\xff"), ("expertfleet-code", "BAD_REQUEST"))
    error = from_details(grpc.StatusCode.INVALID_ARGUMENT, "a proxy's own words", trailing)
    assert (error.code, str(error)) == (Code.BAD_REQUEST, "a proxy's own words")
    unknown = from_details(grpc.StatusCode.INVALID_ARGUMENT, "BAD_REQUEST: x", (("expertfleet-code", "OF_TOMORROW"),))
    assert unknown.code is Code.INTERNAL
