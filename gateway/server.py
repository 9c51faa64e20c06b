"""Both ports of the gateway from their opening to their orderly end.

Knows nothing of signals or command lines. 1. ``start`` reads the model's text files, binds the ports and joins the fleet;
2. ``stop`` refuses new requests, waits for the running ones, ends what is left with an error, and closes.
"""

import asyncio
import contextlib
import logging
import socket

import uvicorn

from ..membership import security
from ..proto.address import family_of, join_address
from .admin import build_admin_app
from .app import build_app
from .config import GatewayConfig
from .events.served_model import Model
from .service import Service

_log = logging.getLogger(__name__)
_ABORT_S = 1.0
_CLOSE_S = 2.0


class GatewayServer:
    def __init__(self, config: GatewayConfig) -> None:
        self.config = config
        self.service = Service(config, Model.load(config.model, config.model_names, config.max_model_len))
        self._servers: list[_Server] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._hurry = asyncio.Event()

    @property
    def url(self) -> str:
        return self.service.url

    @property
    def admin_url(self) -> str:
        return self.service.admin_url()

    async def start(self) -> None:
        """Returns when both ports answer; a port that cannot be opened is a ValueError with the remedy."""
        service, config = self.service, self.config
        security.secure(config.wire)
        with contextlib.ExitStack() as opened:
            port = opened.enter_context(_bind("port", config.host, config.port))
            admin_port = opened.enter_context(_bind("admin_port", config.admin_host, config.admin_port))
            opened.pop_all()
        service.address = (config.host, port.getsockname()[1])
        service.admin_address = (config.admin_host, admin_port.getsockname()[1])
        for app, sock in ((build_app(service), port), (build_admin_app(service), admin_port)):
            server = _Server(
                uvicorn.Config(
                    app,
                    log_config=None,
                    access_log=config.access_log,
                    lifespan="off",
                    ws="none",
                    server_header=False,
                    timeout_keep_alive=75,
                    timeout_graceful_shutdown=1,
                )
            )
            self._servers.append(server)
            self._tasks.append(asyncio.create_task(server.serve(sockets=[sock])))
        while not all(server.started for server in self._servers):
            await asyncio.sleep(0.005)
        self._tasks.append(asyncio.create_task(service.fleet.run(*service.address)))
        self._tasks[-1].add_done_callback(_log_end_of_membership)

    async def stop(self, drain_s: float) -> bool:
        """Whether every request ended by itself."""
        service = self.service
        service.drain.draining = True
        service.fleet.state = "draining"
        finished = await self._finish(drain_s)
        if not finished:
            service.drain.abort()
            await service.drain.finish(_ABORT_S)
        await self._close()
        return finished

    def hurry(self) -> None:
        """Ends the waiting of a running ``stop``."""
        self._hurry.set()

    async def _finish(self, drain_s: float) -> bool:
        waits = [asyncio.create_task(self.service.drain.finish(drain_s)), asyncio.create_task(self._hurry.wait())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finished = waits[0].done() and waits[0].result()
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        return finished

    async def _close(self) -> None:
        *serving, fleet = self._tasks
        fleet.cancel()
        for server in self._servers:
            server.should_exit = True
        _, late = await asyncio.wait(serving, timeout=_CLOSE_S)
        for task in late:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.service.fleet.close()
        await self.service.backend.close()


def _log_end_of_membership(task: asyncio.Task[None]) -> None:
    error = None if task.cancelled() else task.exception()
    if error is not None:
        _log.error("the controller is no longer followed; the last epoch stays in force", exc_info=error)


class _Server(uvicorn.Server):
    """Leaves signals to the process's main function."""

    def capture_signals(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
        return contextlib.nullcontext()


def _bind(name: str, host: str, port: int) -> socket.socket:
    """``::`` is every address of IPv4 as well, where the machine has both."""
    try:
        family = family_of(host)
        both = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
        return socket.create_server((host, port), family=family, backlog=2048, dualstack_ipv6=both)
    except OSError as error:
        remedy = f"choose another with --{name.replace('_', '-')} (0 takes any free one)"
        where = join_address(host, port)
        raise ValueError(f"{name}: cannot listen on {where}: {error.strerror or error}; {remedy}") from error
