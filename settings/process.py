"""A role as a plain process: configuration in, one server until SIGINT or SIGTERM, or until it ends itself, an exit code out.

Knows nothing of what the server does; a second signal ends the process at once.
"""

import argparse
import json
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

from .flags import add_flags
from .reader import SettingsError, masked, read_file, resolve

C = TypeVar("C")


class Server(Protocol):
    """What ``run_role`` starts and stops."""

    address: str

    @property
    def failure(self) -> str:
        """Why it cannot work; empty while it can."""
        ...

    def start(self) -> None: ...

    def wait(self) -> None: ...

    def stop(self, drain_s: float | None = None) -> bool: ...


def read_config(program: str, config: type[C], argv: list[str]) -> tuple[C, bool]:
    """The configuration from ``--config``, environment and flags, and whether ``--dry-run`` was given."""
    parser = argparse.ArgumentParser(prog=f"python -m expertfleet.{program}", description=config.__doc__)
    parser.add_argument("--config", type=Path, metavar="PATH", help="YAML file of settings, named as the flags are")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved settings and stop")
    add_flags(parser, config)
    flags = parser.parse_args(argv)
    file = read_file(flags.config) if flags.config else {}
    resolved = resolve(config, flags=vars(flags), environ=os.environ, file=file, file_name=str(flags.config))
    return resolved, flags.dry_run


def run_role(program: str, config: type[C], make_server: Callable[[C], Server]) -> NoReturn:
    """Ends the process: with 0 after a stop, with 1 and one line on stderr after a user's mistake, or where the server failed and ended itself.

    What the time of a drain was too short for may still be computing. Python's own end would abort the process then, as it
    unwinds a thread that comes back from torch; so the process ends without it.
    """
    code = _run(program, config, make_server)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _run(program: str, config: type[C], make_server: Callable[[C], Server]) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        settings, dry_run = read_config(program, config, sys.argv[1:])
        if dry_run:
            print(json.dumps(masked(settings), indent=2))
            return 0
        server = make_server(settings)
        server.start()
    except (SettingsError, ValueError, OSError) as error:
        print(f"expertfleet {program}: error: {error}", file=sys.stderr)
        return 1
    asked = threading.Event()
    roused = _stop_on_signals(server, asked)
    print(f"listening {server.address}", flush=True)
    _wait(server, roused)
    if server.failure and not asked.is_set():
        print(f"expertfleet {program}: error: {server.failure}", file=sys.stderr)
        return 1
    return 0


def _stop_on_signals(server: Server, asked: threading.Event) -> socket.socket:
    """What can be read as soon as a signal has come, which ``asked`` keeps: Python's handlers run on the main thread alone, and a signal that the kernel
    hands to another thread, as it does to a process that was just continued, does not end the main one's waiting for a lock."""

    def on_signal(number: int, frame: Any) -> None:
        asked.set()
        for again in (signal.SIGINT, signal.SIGTERM):
            signal.signal(again, lambda *_: os._exit(130))
        threading.Thread(target=server.stop, name="stop", daemon=False).start()

    rousing, roused = socket.socketpair()
    rousing.setblocking(False)
    signal.set_wakeup_fd(rousing.detach(), warn_on_full_buffer=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    return roused


def _wait(server: Server, roused: socket.socket) -> None:
    ended = threading.Event()

    def wait() -> None:
        server.wait()
        ended.set()
        roused.shutdown(socket.SHUT_RD)

    threading.Thread(target=wait, name="wait", daemon=True).start()
    while not ended.is_set():
        roused.recv(64)
