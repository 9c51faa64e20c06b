"""The gateway as a command: settings in, one server until it is asked to end, an exit status out.

SIGTERM or SIGINT drains and ends it with exit status 0; a second one ends what still runs at once.
"""

import argparse
import asyncio
import logging
import os
import signal
import sys
from pathlib import Path

import yaml

from ..membership.entrance import check_entrance
from ..settings.flags import add_flags
from ..settings.reader import masked, read_file, resolve
from .config import GatewayConfig


def fill_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="PATH", help="YAML file of settings, named as the flags are")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved settings and end")
    add_flags(parser, GatewayConfig)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    try:
        config = _read_config(arguments)
        if arguments.dry_run:
            print(yaml.safe_dump(masked(config), sort_keys=False), end="")
            return 0
        _set_up_logging(config)
        hosts = {"host": config.host, "admin_host": config.admin_host}
        check_entrance(config.wire, hosts, config.controller)
        import uvloop  # NOTE: what serves is not imported by those who only read a command line

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(config))
    except ValueError as error:
        print(f"gateway: {error}", file=sys.stderr)
        return 1
    return 0


def _read_config(arguments: argparse.Namespace) -> GatewayConfig:
    file = read_file(arguments.config) if arguments.config is not None else None
    return resolve(
        GatewayConfig, flags=vars(arguments), environ=os.environ, file=file, file_name=f"--config {arguments.config}"
    )


async def _serve(config: GatewayConfig) -> None:
    """Raises ValueError once the fleet has refused it for good."""
    from .server import GatewayServer

    server = GatewayServer(config)
    fleet, asked_to_stop = server.service.fleet, asyncio.Event()

    def on_signal() -> None:
        if asked_to_stop.is_set():
            server.hurry()
        asked_to_stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    await server.start()
    print(f"gateway {server.url} admin {server.admin_url}", flush=True)
    ends = [asyncio.create_task(event.wait()) for event in (asked_to_stop, fleet.refused)]
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    await server.stop(config.drain_s)
    if fleet.refused.is_set():
        raise ValueError(fleet.refusal)


def _set_up_logging(config: GatewayConfig) -> None:
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger("uvicorn.access").setLevel(logging.INFO if config.access_log else logging.WARNING)
