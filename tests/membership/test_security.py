"""Members of one fleet reach each other, strangers nobody: by certificate, by token, and not at all without either."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from secret_volume import files_of, mount_secret

from expertfleet.membership import renewed_channel, security
from expertfleet.membership.channel import listen
from expertfleet.membership.security import WireSecurity, WireSettings
from expertfleet.proto.errors import Code, from_call

Certify = Callable[..., Path]
TOKEN = "one fleet's own token"
OPTIONS = [("grpc.enable_http_proxy", 0)]


@pytest.fixture(autouse=True)
def open_again() -> Iterator[None]:
    yield
    security.secure(WireSecurity())


class Echo:
    """A server that answers unary calls and streams with what it was sent."""

    async def start(self, channels: WireSecurity, port: int = 0) -> str:
        security.secure(channels)
        self.server = security.make_server([("grpc.so_reuseport", 0)])
        methods = {
            "Unary": grpc.unary_unary_rpc_method_handler(self.unary),
            "Count": grpc.unary_stream_rpc_method_handler(self.count),
            "Stream": grpc.stream_stream_rpc_method_handler(self.stream),
        }
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Echo", methods),))
        return await listen(self.server, "127.0.0.1", port)

    async def unary(self, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        return request

    async def count(self, request: bytes, context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        for _ in range(3):
            yield request

    async def stream(self, requests: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request


async def every_kind_of_call(address: str) -> None:
    async with security.open_channel(address, OPTIONS) as channel:
        assert await channel.unary_unary("/Echo/Unary")(b"a", timeout=5) == b"a"
        assert [one async for one in channel.unary_stream("/Echo/Count")(b"b", timeout=5)] == [b"b"] * 3
        call = channel.stream_stream("/Echo/Stream")(timeout=5)
        for message in (b"c", b"d"):
            await call.write(message)
            assert await call.read() == message
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF

    def blocking() -> bytes:
        channel = security.open_blocking_channel(address, OPTIONS)
        answer: bytes = channel.unary_unary("/Echo/Unary")(b"e", timeout=5)
        channel.close()
        return answer

    assert await asyncio.to_thread(blocking) == b"e"


async def refused(address: str, method: str) -> grpc.aio.AioRpcError:
    async with security.open_channel(address, OPTIONS) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await CALLS[method](channel)
    return caught.value


async def unary(channel: Any) -> None:
    await channel.unary_unary("/Echo/Unary")(b"a", timeout=5)


async def count(channel: Any) -> None:
    [one async for one in channel.unary_stream("/Echo/Count")(b"a", timeout=5)]


async def stream(channel: Any) -> None:
    """As a lane does it: what is refused reads as the end of the stream."""
    call = channel.stream_stream("/Echo/Stream")(timeout=5)
    await call.write(b"a")
    assert await call.read() is grpc.aio.EOF
    raise grpc.aio.AioRpcError(await call.code(), None, await call.trailing_metadata(), await call.details())


CALLS = {"Unary": unary, "Count": count, "Stream": stream}


@pytest.mark.parametrize("kind", ["token", "tls", "both"])
def test_members_reach_each_other(tls_dir: Path, kind: str) -> None:
    channels = WireSecurity(tls_dir if kind != "token" else None, TOKEN if kind != "tls" else "")

    async def run() -> None:
        echo = Echo()
        address = await echo.start(channels)
        await every_kind_of_call(address)
        await echo.server.stop(None)

    asyncio.run(run())


@pytest.mark.parametrize("method", ["Unary", "Count", "Stream"])
@pytest.mark.parametrize("shown", ["", "another fleet's own token"])
def test_a_call_without_the_token_is_refused_by_name(method: str, shown: str) -> None:
    async def run() -> grpc.aio.AioRpcError:
        echo = Echo()
        address = await echo.start(WireSecurity(token=TOKEN))
        security.secure(WireSecurity(token=shown))
        error = await refused(address, method)
        await echo.server.stop(None)
        return error

    error = asyncio.run(run())
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    assert from_call(error).code is Code.UNAUTHENTICATED


@pytest.mark.parametrize("stranger", ["plain", "foreign authority", "no certificate", "another name"])
def test_strangers_get_no_answer_from_tls(
    tmp_path: Path, certify: Certify, stranger: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(security, "find_fault", lambda *files: "")  # which members find in their own files
    authority = trustme.CA()
    mine = certify(tmp_path / "mine", authority, "somebody" if stranger == "another name" else "expertfleet")
    theirs = certify(tmp_path / "theirs", trustme.CA())
    (theirs / "ca.crt").write_bytes((mine / "ca.crt").read_bytes())  # who trusts us, but whom we do not

    async def run() -> grpc.StatusCode:
        echo = Echo()
        address = await echo.start(WireSecurity(mine))
        if stranger == "no certificate":
            trusting = grpc.ssl_channel_credentials((mine / "ca.crt").read_bytes())
            options = [*OPTIONS, ("grpc.ssl_target_name_override", "expertfleet")]
            async with grpc.aio.secure_channel(address, trusting, options=options) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await channel.unary_unary("/Echo/Unary")(b"a", timeout=5)
            code: grpc.StatusCode = caught.value.code()
        else:
            known = {"plain": None, "foreign authority": theirs, "another name": mine}[stranger]
            security.secure(WireSecurity(known))
            code = (await refused(address, "Unary")).code()
        await echo.server.stop(None)
        return code

    assert asyncio.run(run()) is grpc.StatusCode.UNAVAILABLE


def renew(volume: Path, certify: Certify) -> None:
    """The authority itself is replaced, so that the old certificate would be refused."""
    mount_secret(volume, files_of(certify(volume.parent / "issued", trustme.CA())))


def test_renewed_certificates_are_taken_while_serving(tmp_path: Path, certify: Certify) -> None:
    async def run() -> None:
        echo = Echo()
        renew(tmp_path / "tls", certify)
        address = await echo.start(WireSecurity(tmp_path / "tls"))
        await every_kind_of_call(address)
        renew(tmp_path / "tls", certify)
        await every_kind_of_call(address)
        await echo.server.stop(None)

    asyncio.run(run())


def test_a_channel_of_before_meets_a_server_of_after_a_renewal(
    tmp_path: Path, certify: Certify, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker's channel to its controller lives for weeks; the controller may start again at any time."""
    monkeypatch.setattr(renewed_channel, "_LOOK_S", 0.0)

    async def run() -> None:
        renew(tmp_path / "tls", certify)
        channels, echo = WireSecurity(tmp_path / "tls", TOKEN), Echo()
        address = await echo.start(channels)
        blocking = security.open_blocking_channel(address, OPTIONS)
        ask_and_wait = blocking.unary_unary("/Echo/Unary")
        async with security.open_channel(address, OPTIONS) as channel:
            ask = channel.unary_unary("/Echo/Unary")
            assert await asyncio.to_thread(ask_and_wait, b"a", timeout=5) == b"a"
            call = channel.stream_stream("/Echo/Stream")(timeout=20)
            await call.write(b"a")
            assert await call.read() == b"a"
            renew(tmp_path / "tls", certify)
            assert await ask(b"b", timeout=5) == b"b"
            await call.write(b"c")
            assert await call.read() == b"c", "what ran on the old channel goes on there"
            call.cancel()
            await echo.server.stop(None)
            await echo.start(channels, int(address.rpartition(":")[2]))
            assert await ask(b"d", timeout=5) == b"d"
            assert await asyncio.to_thread(ask_and_wait, b"e", timeout=5) == b"e"
        blocking.close()
        await echo.server.stop(None)

    asyncio.run(run())


def test_while_both_authorities_are_known_old_and_new_certificates_meet(tmp_path: Path, certify: Certify) -> None:
    """Pods get a renewal at different moments."""
    folders = {name: files_of(certify(tmp_path / f"issued {name}", trustme.CA())) for name in ("old", "new")}
    both = folders["old"]["ca.crt"] + folders["new"]["ca.crt"]
    for name, files in folders.items():
        mount_secret(tmp_path / name, {**files, "ca.crt": both})

    async def run() -> None:
        for server, client in (("old", "new"), ("new", "old")):
            echo = Echo()
            address = await echo.start(WireSecurity(tmp_path / server))
            security.secure(WireSecurity(tmp_path / client))
            await every_kind_of_call(address)
            await echo.server.stop(None)

    asyncio.run(run())


@pytest.mark.parametrize("damage", ["removed", "half"])
def test_a_renewal_that_cannot_be_read_changes_nothing(
    tmp_path: Path, certify: Certify, damage: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(renewed_channel, "_LOOK_S", 0.0)

    async def run() -> None:
        renew(tmp_path / "tls", certify)
        echo = Echo()
        address = await echo.start(WireSecurity(tmp_path / "tls"))
        async with security.open_channel(address, OPTIONS) as channel:
            whole = files_of(tmp_path / "issued")
            mount_secret(tmp_path / "tls", {} if damage == "removed" else {"ca.crt": whole["ca.crt"]})
            assert await channel.unary_unary("/Echo/Unary")(b"a", timeout=5) == b"a"
        await echo.server.stop(None)

    asyncio.run(run())
    assert "calls go on with the certificate that there was: tls_dir: " in caplog.text


def test_files_of_two_renewals_are_never_put_together(
    tmp_path: Path, certify: Certify, monkeypatch: pytest.MonkeyPatch
) -> None:
    renew(tmp_path / "tls", certify)
    read_bytes, swaps = Path.read_bytes, iter([True])

    def read_and_swap(path: Path) -> bytes:
        """The swap comes between the first file that is read and the second."""
        content = read_bytes(path)
        if path.parent.name == "tls" and next(swaps, False):
            renew(tmp_path / "tls", certify)
        return content

    monkeypatch.setattr(Path, "read_bytes", read_and_swap)
    files = WireSecurity(tmp_path / "tls").read()
    assert files == tuple(files_of(tmp_path / "issued")[name] for name in ("ca.crt", "tls.crt", "tls.key"))


def test_an_address_open_to_strangers_wants_protection() -> None:
    async def run(host: str) -> None:
        await listen(security.make_server(OPTIONS), host, 0)

    for host in ("0.0.0.0", "::", "example.org"):
        with pytest.raises(ValueError, match="can be reached by strangers; give --tls-dir or --cluster-token"):
            asyncio.run(run(host))


def test_an_ipv6_address_is_listened_on_and_announced_in_brackets() -> None:
    async def run() -> str:
        server = security.make_server(OPTIONS)
        address = await listen(server, "::1", 0)
        try:
            async with security.open_channel(address, OPTIONS) as channel:
                await asyncio.wait_for(channel.channel_ready(), 10)
        finally:
            await server.stop(None)
        return address

    assert re.fullmatch(r"\[::1\]:\d+", asyncio.run(run()))


def test_bad_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^cluster_token: wants at least 16"):
        WireSettings(cluster_token="short")
    with pytest.raises(ValueError, match=r"^cluster_token: "):
        WireSettings(cluster_token="sixteen\nand much more")
    WireSettings(cluster_token="x" * 4096)
    with pytest.raises(ValueError, match=r"^cluster_token: wants .* at most 4096$"):
        WireSettings(cluster_token="x" * 4097)
    with pytest.raises(ValueError, match=r"^tls_dir: .*ca\.crt: No such file or directory; the directory must hold"):
        WireSettings(tls_dir=tmp_path)
