"""Who may talk on the fleet's gRPC channels: TLS on both sides, a token of the cluster, both, or anybody on loopback.

Knows nothing of what is said. A process belongs to one fleet, so ``secure`` is called once, before its first channel.
With a TLS directory both ends show a certificate of the same authority; every member's certificate names ``expertfleet``
(machines come and go, so addresses are not checked). Servers read the files again before every handshake, channels before a call, so
that certificates can be renewed while serving. The token travels with every call; without TLS it is readable on the network.
"""

import hmac
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import grpc

from ..proto.address import is_loopback, join_address
from ..proto.errors import Code, FleetError, abort
from ..settings.option import Settings, option
from .certificates import find_fault
from .renewed_channel import KINDS_OF_CALLS, Files, RenewedAioChannel, RenewedChannel

_log = logging.getLogger(__name__)
# What a directory of TLS holds: the authority, this member's certificate, and its key.
TLS_FILES = ("ca.crt", "tls.crt", "tls.key")
# What every member's certificate names.
MEMBER_NAME = "expertfleet"
_TOKEN_KEY = "expertfleet-token"
_MIN_TOKEN, _MAX_TOKEN = 16, 4096  # gRPC takes 8 KiB of metadata for sure, and what is beyond by chance

Options = Sequence[tuple[str, Any]]


@dataclass(frozen=True)
class WireSecurity:
    """What this process shows to others and asks of them. Raises ValueError naming the setting."""

    tls_dir: Path | None = None
    token: str = ""

    def __post_init__(self) -> None:
        fits = _MIN_TOKEN <= len(self.token) <= _MAX_TOKEN and self.token.isascii() and self.token.isprintable()
        if self.token and not fits:
            raise ValueError(
                f"cluster_token: wants at least {_MIN_TOKEN} printable ASCII characters, at most {_MAX_TOKEN}"
            )
        if self.tls_dir is not None and (fault := self._find_fault(self.tls_dir)):
            raise ValueError(f"tls_dir: {fault}")

    def _find_fault(self, folder: Path) -> str:
        """Of files of one and the same renewal."""
        while True:
            files = self.read()
            authority, certificate, key = (folder / name for name in TLS_FILES)
            fault = find_fault(authority, certificate, key, MEMBER_NAME)
            if not fault or self.read() == files:
                return fault

    def read(self) -> Files:
        """The authority's certificate, this process's, and its key; of one and the same renewal."""
        files = self._read_once()
        while (again := self._read_once()) != files:
            files = again
        return files

    def _read_once(self) -> Files:
        assert self.tls_dir is not None
        try:
            authority, certificate, key = ((self.tls_dir / name).read_bytes() for name in TLS_FILES)
        except OSError as error:
            told = f"{error.filename}: {error.strerror}"
            raise ValueError(f"tls_dir: {told}; the directory must hold {', '.join(TLS_FILES)}") from error
        return authority, certificate, key

    @property
    def is_open(self) -> bool:
        return self.tls_dir is None and not self.token


@dataclass(frozen=True, kw_only=True)
class WireSettings(Settings):
    """The settings of this that every role has."""

    tls_dir: Path | None = option(
        None, "directory of ca.crt, tls.crt and tls.key: TLS on both sides of every gRPC channel", group="network"
    )
    cluster_token: str = option("", "secret that every gRPC call must carry", group="network", secret=True)

    @property
    def wire(self) -> WireSecurity:
        """Raises ValueError for files that are not there and a token that is too short."""
        return WireSecurity(self.tls_dir, self.cluster_token)

    def check(self) -> None:
        super().check()
        WireSecurity(self.tls_dir, self.cluster_token)


_security = WireSecurity()


def secure(security: WireSecurity) -> None:
    """From now on for every channel and server of this process."""
    global _security
    _security = security


def open_channel(address: str, options: Options) -> "grpc.aio.Channel":
    """To be called on the event loop that will use it."""
    if _security.tls_dir is None:
        return _with_token(grpc.aio.insecure_channel(address, options=options))

    def connect(files: Files) -> grpc.aio.Channel:
        return grpc.aio.secure_channel(address, _client_credentials(files), options=_named(options))

    return _with_token(RenewedAioChannel(_security.read, connect))


def open_blocking_channel(address: str, options: Options) -> grpc.Channel:
    """The same for a thread without an event loop."""
    if _security.tls_dir is None:
        return _with_token(grpc.insecure_channel(address, options=options))

    def connect(files: Files) -> grpc.Channel:
        return grpc.secure_channel(address, _client_credentials(files), options=_named(options))

    return _with_token(RenewedChannel(_security.read, connect))


def make_server(options: Options) -> grpc.aio.Server:
    """A server that refuses calls without the token, if there is one."""
    guards = [_TokenGuard(_security.token)] if _security.token else []
    return grpc.aio.server(options=options, interceptors=guards)


def add_port(server: grpc.aio.Server, host: str, port: int) -> int:
    """The port bound. Raises RuntimeError when it cannot be, ValueError for an address that strangers could reach."""
    if _security.is_open and not is_loopback(host):
        raise ValueError(f"host: {host} can be reached by strangers; give --tls-dir or --cluster-token (or 127.0.0.1)")
    if _security.tls_dir is None:
        return int(server.add_insecure_port(join_address(host, port)))
    return int(server.add_secure_port(join_address(host, port), _server_credentials(_security)))


def socket_context(server_side: bool) -> ssl.SSLContext | None:
    """For a connection that gRPC does not make: certificates of both ends, as on channels; None without TLS.

    Raises OSError for files that cannot be used.
    """
    if _security.tls_dir is None:
        return None
    authority, certificate, key = (str(_security.tls_dir / name) for name in TLS_FILES)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(authority)
    context.load_cert_chain(certificate, key)
    return context


def secure_socket(context: ssl.SSLContext, connected: socket.socket, timeout_s: float) -> socket.socket:
    """The client's end of such a connection. Blocks; raises OSError."""
    connected.settimeout(timeout_s)
    return context.wrap_socket(connected, server_hostname=MEMBER_NAME)


def _client_credentials(files: Files) -> grpc.ChannelCredentials:
    authority, certificate, key = files
    return grpc.ssl_channel_credentials(authority, key, certificate)


def _server_credentials(security: WireSecurity) -> grpc.ServerCredentials:
    current = security.read()

    def configuration(files: Files) -> grpc.ServerCertificateConfiguration:
        authority, certificate, key = files
        return grpc.ssl_server_certificate_configuration([(key, certificate)], authority)

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        """Asked before every handshake; None: no change."""
        nonlocal current
        try:
            files = security.read()
        except ValueError as error:
            _log.warning("the certificate stays as it was: %s", error)
            return None
        if files == current:
            return None
        current = files
        return configuration(files)

    return grpc.dynamic_ssl_server_credentials(configuration(current), renewed, require_client_authentication=True)


def _named(options: Options) -> list[tuple[str, Any]]:
    return [*options, ("grpc.ssl_target_name_override", MEMBER_NAME)]


def _with_token(channel: Any) -> Any:
    return _TokenChannel(channel, ((_TOKEN_KEY, _security.token),)) if _security.token else channel


class _TokenChannel:
    """A channel whose every call carries the token; an interceptor would cost a task for each call."""

    def __init__(self, channel: Any, metadata: tuple[tuple[str, str], ...]) -> None:
        self._channel, self._metadata = channel, metadata

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._channel, name)
        if name not in KINDS_OF_CALLS:
            return found
        return lambda *place, **named: partial(found(*place, **named), metadata=self._metadata)

    async def __aenter__(self) -> Self:
        await self._channel.__aenter__()
        return self

    async def __aexit__(self, *ending: object) -> None:
        await self._channel.__aexit__(*ending)


class _TokenGuard(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    def __init__(self, token: str) -> None:
        self._token = token.encode()
        # A stream's handler refuses calls of every kind before anything of theirs is read.
        self._refusal = grpc.stream_stream_rpc_method_handler(_refuse)

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        shown = next((value for key, value in details.invocation_metadata if key == _TOKEN_KEY), "")
        if hmac.compare_digest(shown.encode() if isinstance(shown, str) else shown, self._token):
            return await continuation(details)
        return self._refusal


async def _refuse(requests: Any, context: grpc.aio.ServicerContext) -> None:
    error = FleetError(Code.UNAUTHENTICATED, "the call does not carry this fleet's --cluster-token")
    await abort(context, error)
