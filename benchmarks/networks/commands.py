"""Runs ``ip`` and ``tc``; what they refuse is a NetworkError.

Knows nothing of networks.
"""

import subprocess


class NetworkError(Exception):
    """The network cannot be made or changed; one line."""


def ip(*arguments: str) -> None:
    _run("ip", *arguments)


def tc(namespace: str, *arguments: str) -> None:
    _run("tc", "-n", namespace, *arguments)


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise NetworkError(f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        raise NetworkError(f"{' '.join(command)}: {' '.join(done.stderr.split())}")
