"""``expertfleet scale`` and ``expertfleet drain``: how many workers a running fleet shall have.

Knows nothing of the fleet but one URL. 1. The API's ``/health`` names the admin port; 2. its ``/scale`` takes the wish, or refuses it
with a reason; 3. with ``wait_s``, ``/status`` is asked until everything is as wished.
"""

import time
from collections.abc import Callable
from typing import Any

import httpx

from .errors import ClusterError
from .status import admin_url, get_json

_TIMEOUT_S = 10.0
_POLL_S = 0.3


def scale(url: str, wish: dict[str, Any], api_key: str, wait_s: float, say: Callable[[str], None]) -> None:
    """Raises ClusterError when it is refused, or not done within ``wait_s``; 0 does not wait."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    with httpx.Client(trust_env=False, timeout=_TIMEOUT_S, headers=headers) as client:
        admin = admin_url(client, url)
        before = get_json(client, f"{admin}/status")
        try:
            reply = client.post(f"{admin}/scale", json=wish)
        except httpx.TransportError as error:
            raise ClusterError(f"--url: {admin} does not answer ({error})") from error
        if reply.status_code != 200:
            raise ClusterError(_reason(reply))
        say(_difference(before, reply.json()))
        if wait_s:
            _wait(client, admin, wait_s, say)


def _wait(client: httpx.Client, admin: str, wait_s: float, say: Callable[[str], None]) -> None:
    give_up = time.monotonic() + wait_s
    while not (status := get_json(client, f"{admin}/status"))["settled"]:
        if time.monotonic() > give_up:
            raise ClusterError(f"not done after {wait_s:g} s, and still under way; see expertfleet status")
        time.sleep(_POLL_S)
    say(
        f"done: {len(_seats(status))} workers, {100 * status['coverage']:.0f} % of the experts survive the loss of any node"
    )


def _difference(before: dict[str, Any], after: dict[str, Any]) -> str:
    was, now = _seats(before), {*after["expert_seats"], *after["attention_seats"]}
    changes = [f"{seat} starts" for seat in sorted(now - was)] + [f"{seat} leaves" for seat in sorted(was - now)]
    return f"{', '.join(changes) or 'no seat comes or goes'}; replicas {after['replicas']:g}"


def _seats(status: dict[str, Any]) -> set[str]:
    return {worker["seat"] for worker in status["workers"] if worker["wanted"]}


def _reason(reply: httpx.Response) -> str:
    try:
        return str(reply.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"answered with status {reply.status_code}"
