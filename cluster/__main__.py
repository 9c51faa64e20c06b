"""The ``expertfleet`` command: serve, head, node, gateway, status, scale, drain, chat, certs, checkpoint.

Knows nothing of what they do. It alone reads flags, file and environment. A user's mistake is one line on standard error
and exit status 1, a wrong command line is status 2; neither is ever a traceback.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..settings.help_formatter import HelpFormatter
from .errors import ClusterError

if TYPE_CHECKING:
    from .commands.config import FleetConfig

# NOTE: a command's modules are imported once it is the one that was typed: the others' (numpy, gRPC, httpx) take half a second.
_URL = "http://127.0.0.1:8000"


class _Command(argparse.ArgumentParser):
    """A parser that gets its flags once its command is the one that was typed."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**{"formatter_class": HelpFormatter, **given})
        self.fill: Callable[[argparse.ArgumentParser], None] | None = None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self.fill is not None:
            fill, self.fill = self.fill, None
            fill(self)
        return super().parse_known_args(args, namespace)


def main(argv: Sequence[str] | None = None) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    arguments = make_parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except (ClusterError, ValueError, OSError) as error:
        print(f"expertfleet: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="expertfleet", description="Serve a mixture of experts on ordinary machines.")
    parser.add_argument("--version", action="version", version=f"expertfleet {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Command)
    for name, (fill, told) in _COMMANDS.items():
        commands.add_parser(name, help=told).fill = fill
    return parser


def _add_serve(parser: argparse.ArgumentParser) -> None:
    from ..settings.flags import add_flags
    from .commands.config import FleetConfig

    parser.add_argument("positional_model", nargs="?", metavar="MODEL", help="directory of the checkpoint")
    parser.add_argument("--config", type=Path, metavar="PATH", help="YAML file of settings, named as the flags are")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved settings and the plan, then stop")
    add_flags(parser, FleetConfig, positional="MODEL")
    parser.set_defaults(run=_serve)


def _add_head(parser: argparse.ArgumentParser) -> None:
    from ..settings.flags import add_flags
    from .commands.head import HeadConfig

    add_flags(parser, HeadConfig)
    parser.set_defaults(run=_head)


def _add_node(parser: argparse.ArgumentParser) -> None:
    from .commands.node import add_node_flags

    add_node_flags(parser)
    parser.set_defaults(run=_node)


def _add_gateway(parser: argparse.ArgumentParser) -> None:
    from ..gateway.command import fill_parser

    fill_parser(parser)


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    from ..checkpoint.command import fill_parser

    fill_parser(parser)


def _add_status(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", default=_URL, help=f"address of the API or its admin port (default: {_URL})")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_status)


def _add_scale(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--expert-shards", type=int, help="number of expert shards")
    parser.add_argument("--attention-workers", type=int, help="number of attention workers")
    parser.add_argument(
        "--replicas", type=float, help="copies of each expert; 1.25 is a second copy of a quarter of them"
    )
    parser.add_argument(
        "--statefulset", metavar="NAME", help="on Kubernetes: the group of pods that gets this number, by your kubectl"
    )
    parser.add_argument("--namespace", help="on Kubernetes: where it is (default: kubectl's own)")
    _add_admin_flags(parser)
    parser.set_defaults(run=_scale)


def _add_drain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("seat", metavar="SEAT", help="such as expert-3; it leaves once others hold what it holds")
    _add_admin_flags(parser)
    parser.set_defaults(run=_drain)


def _add_admin_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", default=_URL, help=f"address of the API or its admin port (default: {_URL})")
    parser.add_argument("--api-key", default="", help="key of the API")
    parser.add_argument(
        "--wait-s", type=float, default=0.0, help="wait so long until it is done (default: do not wait)"
    )


def _add_chat(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "question", nargs="?", help="one question; without it, standard input is one where it is not a terminal"
    )
    parser.add_argument("--url", default=_URL, help=f"address of the API (default: {_URL})")
    parser.add_argument("--model", help="name of the model; the first one served if not given")
    parser.add_argument("--api-key", default="", help="key of the API")
    parser.add_argument("--system", default="", help="the system message")
    parser.add_argument("--temperature", type=float, help="0 takes the likeliest token (default: the model's own)")
    parser.add_argument("--max-tokens", type=int, help="most tokens of one answer")
    parser.set_defaults(run=_chat)


def _add_certs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, metavar="DIR", help="where the files go; members take it as --tls-dir")
    parser.add_argument("--days", type=int, default=365, help="days that the certificate is good for (default: 365)")
    parser.set_defaults(run=_certs)


def read_fleet_config(arguments: argparse.Namespace) -> "FleetConfig":
    """File < environment < flags; the positional MODEL is a flag."""
    from ..settings.reader import SettingsError, read_file, resolve
    from .commands.config import FleetConfig

    flags = dict(vars(arguments))
    if flags.get("positional_model") is not None:
        if "model" in flags:
            raise SettingsError("MODEL and --model are the same; give one of them")
        flags["model"] = flags["positional_model"]
    file = read_file(arguments.config) if arguments.config is not None else None
    name = f"--config {arguments.config}"
    return resolve(FleetConfig, flags=flags, environ=os.environ, file=file, file_name=name)


def _serve(arguments: argparse.Namespace) -> int:
    import yaml

    from ..settings.reader import masked
    from .commands.serve import dry_run, serve

    config = read_fleet_config(arguments)
    if not arguments.dry_run:
        return serve(config)
    print(yaml.safe_dump({"settings": masked(config), "plan": dry_run(config)}, sort_keys=False), end="")
    return 0


def _head(arguments: argparse.Namespace) -> int:
    from ..settings.reader import resolve
    from .commands.head import HeadConfig, run_head

    return run_head(resolve(HeadConfig, flags=vars(arguments), environ=os.environ))


def _node(arguments: argparse.Namespace) -> int:
    from .commands.node import read_node_config, run_node

    return run_node(*read_node_config(vars(arguments), os.environ))


def _status(arguments: argparse.Namespace) -> int:
    from .commands.status import fetch_status, render

    print(render(fetch_status(arguments.url), arguments.json))
    return 0


def _scale(arguments: argparse.Namespace) -> int:
    from ..settings.option import within
    from .commands.scale import scale
    from .commands.statefulset import scale_statefulset
    from .controller.desired_state import MAX_SEATS

    names = ("expert_shards", "attention_workers", "replicas")
    wish = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    if not wish:
        raise ClusterError("nothing to change; give --expert-shards, --attention-workers or --replicas")
    _check_wait(arguments)
    if arguments.statefulset is not None:
        scale_statefulset(
            arguments.statefulset,
            arguments.namespace,
            wish,
            arguments.url,
            arguments.api_key,
            arguments.wait_s,
            print,
        )
        return 0
    if arguments.namespace is not None:
        raise ClusterError(f"--namespace: {arguments.namespace} is given without --statefulset")
    for name, value in wish.items():
        within(name, value, 1, MAX_SEATS)
    scale(arguments.url, wish, arguments.api_key, arguments.wait_s, print)
    return 0


def _check_wait(arguments: argparse.Namespace) -> None:
    from ..settings.option import within

    within("wait_s", arguments.wait_s, 0, 86_400 * 30)


def _drain(arguments: argparse.Namespace) -> int:
    from .commands.scale import scale

    _check_wait(arguments)
    scale(arguments.url, {"drain": arguments.seat}, arguments.api_key, arguments.wait_s, print)
    return 0


def _chat(arguments: argparse.Namespace) -> int:
    from .commands.chat import Chat, line_editor
    from .commands.chat_client import ChatClient

    client = ChatClient(arguments.url.rstrip("/"), arguments.api_key)
    options = {name: value for name in ("temperature", "max_tokens") if (value := getattr(arguments, name)) is not None}
    is_terminal = sys.stdout.isatty()
    aside = sys.stdout if is_terminal else sys.stderr
    dims = is_terminal and "NO_COLOR" not in os.environ
    chat = Chat(client, arguments.model or client.first_model(), sys.stdout, aside, dims, arguments.system, options)
    if (question := arguments.question) is None and sys.stdin.isatty():
        chat.converse(line_editor())
        return 0
    if not (question := sys.stdin.read() if question is None else question).strip():
        raise ClusterError("no question: give it as an argument or on standard input")
    chat.turn(question)
    return 0


def _certs(arguments: argparse.Namespace) -> int:
    from .commands.certs import issue

    print(issue(arguments.directory, arguments.days))
    return 0


_COMMANDS: dict[str, tuple[Callable[[argparse.ArgumentParser], None], str]] = {
    "serve": (_add_serve, "start a fleet and serve its API"),
    "head": (_add_head, "start the head of a fleet on several machines"),
    "node": (_add_node, "offer this machine's place for one worker to a head"),
    "gateway": (_add_gateway, "start a gateway of a fleet on several machines"),
    "status": (_add_status, "list the workers of a running fleet"),
    "scale": (_add_scale, "change the size of a running fleet"),
    "drain": (_add_drain, "have one worker of a running fleet leave"),
    "chat": (_add_chat, "talk to a running fleet"),
    "certs": (_add_certs, "make a test authority and a certificate for mutual TLS"),
    "checkpoint": (_add_checkpoint, "make, check and pull checkpoints"),
}


if __name__ == "__main__":
    sys.exit(main())
