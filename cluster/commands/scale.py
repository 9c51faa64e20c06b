"""``expertfleet scale`` and ``expertfleet drain``: how many workers a running fleet shall have.

Knows nothing of the fleet but one URL. 1. The API's ``/health`` names the admin port; 2. its ``/scale`` takes the wish, or refuses it
with a reason; 3. with ``wait_s``, ``/status`` is asked until everything is as wished.
"""

import time
from collections.abc import Callable
from typing import Any

import httpx

from ..errors import ClusterError
from .status import admin_url, get_json

_TIMEOUT_S = 10.0
_POLL_S = 0.3


def scale(url: str, wish: dict[str, Any], api_key: str, wait_s: float, say: Callable[[str], None]) -> None:
    """Raises ClusterError when it is refused, or not done within ``wait_s``; 0 does not wait."""
    with open_client(api_key) as client:
        admin = admin_url(client, url)
        before = get_json(client, f"{admin}/status")
        try:
            reply = client.post(f"{admin}/scale", json=wish)
        except httpx.TransportError as error:
            raise ClusterError(f"--url: {admin} does not answer ({error})") from error
        if reply.status_code != 200:
            raise ClusterError(reason(reply))
        say(_difference(before, reply.json()))
        if wait_s:
            say(wait(client, admin, wait_s, lambda status: bool(status["settled"])))


def wait(client: httpx.Client, admin: str, wait_s: float, is_done: Callable[[dict[str, Any]], bool]) -> str:
    """What was reached, for people. Raises ClusterError when ``is_done`` of the status is not so within ``wait_s``."""
    give_up = time.monotonic() + wait_s
    while not is_done(status := get_json(client, f"{admin}/status")):
        if time.monotonic() > give_up:
            raise ClusterError(f"not done after {wait_s:g} s, and still under way; see expertfleet status")
        time.sleep(_POLL_S)
    survive = f"{100 * status['coverage']:.0f} % of the experts survive the loss of any node"
    return f"done: {len(wanted_seats(status))} workers, {survive}"


def open_client(api_key: str) -> httpx.Client:
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    return httpx.Client(trust_env=False, timeout=_TIMEOUT_S, headers=headers)


def _difference(before: dict[str, Any], after: dict[str, Any]) -> str:
    was, now = wanted_seats(before), {*after["expert_seats"], *after["attention_seats"]}
    changes = [f"{seat} starts" for seat in sorted(now - was)] + [f"{seat} leaves" for seat in sorted(was - now)]
    return f"{', '.join(changes) or 'no seat comes or goes'}; replicas {after['replicas']:g}"


def wanted_seats(status: dict[str, Any]) -> set[str]:
    return {worker["seat"] for worker in status["workers"] if worker["wanted"]}


def reason(reply: httpx.Response) -> str:
    """Why it was refused, in the gateway's words."""
    try:
        return str(reply.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"answered with status {reply.status_code}"
