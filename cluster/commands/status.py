"""``expertfleet status``: every worker of a running fleet, as a table or as JSON.

Knows nothing of the fleet but one URL. 1. The API's ``/health`` names the admin port; 2. its ``/status`` lists the
workers. An admin URL is taken as well.
"""

import json
from typing import Any

import httpx

from ..errors import ClusterError

FIELDS = ("role", "seat", "pid", "node", "state", "epoch", "numerics", "experts", "bytes", "tokens")


def fetch_status(url: str) -> dict[str, Any]:
    with httpx.Client(trust_env=False, timeout=5.0) as client:
        return get_json(client, f"{admin_url(client, url)}/status")


def admin_url(client: httpx.Client, url: str) -> str:
    """The fleet's admin port, from the address of the API or its own."""
    url = url.rstrip("/")
    return str(get_json(client, f"{url}/health").get("admin") or url)


def render(status: dict[str, Any], as_json: bool) -> str:
    workers = [{field: worker.get(field) for field in FIELDS} for worker in status["workers"]]
    if as_json:
        return json.dumps({"workers": workers}, indent=2)
    lines = table([FIELDS, *([_cell(worker[field]) for field in FIELDS] for worker in workers)])
    if not status.get("ready"):
        lines.append(f"not ready: {status.get('missing') or 'no reason given'}")
    else:
        survive = f"{100 * status['coverage']:.0f} % of the experts survive the loss of any one node"
        lines.append(f"{survive}; {'settled' if status['settled'] else 'experts or workers are on the move'}")
    if status.get("shortfall"):
        lines.append(status["shortfall"])
    for worker in status["workers"]:
        if accusers := worker.get("quarantined_by"):
            lines.append(
                f"{worker['seat']} is quarantined by {', '.join(accusers)}: it gave an answer that was not finite and a "
                f"replica did not; have a look at its machine, or expertfleet drain {worker['seat']}"
            )
    return "\n".join(lines)


def table(rows: "list[Any]") -> list[str]:
    """Left-aligned columns, as wide as their widest cell."""
    widths = [max(len(str(row[column])) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _cell(value: Any) -> str:
    return "-" if value in (None, "") else str(value)


def get_json(client: httpx.Client, url: str) -> dict[str, Any]:
    try:
        reply = client.get(url)
        body = reply.json() if reply.status_code == 200 else None
    except httpx.TransportError as error:
        raise ClusterError(f"--url: {url} does not answer ({error}); is the fleet running there?") from error
    except (ValueError, httpx.InvalidURL) as error:
        raise ClusterError(f"--url: {url} is not a fleet's address: {error}") from error
    if not isinstance(body, dict):
        raise ClusterError(f"--url: {url} answered with status {reply.status_code}; is it a fleet's address?")
    return body
