"""Joins a Ray cluster as a driver. Knows nothing of what is done there; imports Ray, which reads its environment at import."""

import logging
import threading
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError

from ...membership.port_probe import why_unreachable
from ..errors import ClusterError
from .settings import NAMESPACE

_CONNECT_S = 20.0

WaitUntil = Callable[[Callable[[], bool], float], bool]


def connect(address: str, wait_until: WaitUntil) -> None:
    """An unreachable Ray at ``address`` is a ClusterError within ``_CONNECT_S``."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    problem: list[str] = [reason] if (reason := why_unreachable(address)) else []

    def join() -> None:
        try:
            ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, configure_logging=False)
        except (RayError, OSError, RuntimeError, ValueError) as error:
            problem.append(last_line(error))

    thread = threading.Thread(target=join, name="ray-init", daemon=True)
    if not problem:
        thread.start()
    if not wait_until(lambda: not thread.is_alive(), _CONNECT_S):
        problem.append(f"no answer within {_CONNECT_S:g} s")
    if problem:
        raise ClusterError(f"Ray at {address} cannot be used: {problem[0]}")


def is_done(reference: Any) -> bool:
    done, _ = ray.wait([reference], timeout=0)
    return bool(done)


def last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
