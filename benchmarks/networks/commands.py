"""Runs ``ip`` and ``tc``; what they refuse is a NetworkError.

Knows nothing of networks.
"""

import json
import subprocess
from typing import Any


class NetworkError(Exception):
    """The network cannot be made or changed; one line."""


def ip(*arguments: str) -> None:
    _run("ip", *arguments)


def port_state(namespace: str, device: str) -> str:
    """What a bridge does with a device's packets: the kernel's word, "forwarding" where it lets them through."""
    (told,) = json.loads(_run("ip", "-json", "-details", "-n", namespace, "link", "show", "dev", device))
    linked: dict[str, Any] = told.get("linkinfo", {})
    return str(linked.get("info_slave_data", {}).get("state", ""))


def tc(namespace: str, *arguments: str) -> None:
    _run("tc", "-n", namespace, *arguments)


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise NetworkError(f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        raise NetworkError(f"{' '.join(command)}: {' '.join(done.stderr.split())}")
    return done.stdout
