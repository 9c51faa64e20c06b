"""The one asyncio loop of a worker process, on a thread of its own.

Knows nothing of what runs on it. All gRPC objects of a process live on this loop; other threads reach it through
``submit`` (a coroutine, waited for), ``spawn`` (one that is not) and ``post`` (a plain call, not waited for).
"""

import asyncio
import concurrent.futures
import socket
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import uvloop

T = TypeVar("T")


class IoThread:
    """Starts at construction; ``stop`` cancels what still runs and joins the thread."""

    def __init__(self, name: str) -> None:
        self.loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, T], timeout_s: float | None = None) -> T:
        """Runs ``work`` on the loop and waits for its result."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout_s)

    def spawn(self, work: Coroutine[Any, Any, T]) -> "concurrent.futures.Future[T]":
        """Starts ``work`` on the loop; whoever needs its end keeps the future."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def post(self, call: Callable[..., object], *args: object) -> None:
        """Calls ``call(*args)`` on the loop soon; nothing happens once the loop is closed."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(call, *args)

    def watch(self, watched: socket.socket, readable: Callable[[], object]) -> None:
        """Until ``unwatch``, which is for the loop's own thread."""
        self.post(self.loop.add_reader, watched.fileno(), readable)

    def unwatch(self, watched: socket.socket) -> None:
        self.loop.remove_reader(watched.fileno())

    def stop(self) -> None:
        if self.loop.is_closed():
            return
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        pending = asyncio.all_tasks(self.loop)
        for task in pending:
            task.cancel()
        self.loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
