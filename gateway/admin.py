"""The routes of the admin port: metrics, the fleet's status and size, besides health and readiness.

Knows nothing of the API. What it shows comes from the controller when asked, and from its last answer while it is away.
"""

import os
import socket
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from ..membership.epoch import EpochId
from ..proto.address import is_loopback
from ..proto.errors import FleetError, shown
from ..proto.generated import membership_pb2 as pb
from .app import new_app
from .http.errors import ApiError, bad_value, from_fleet
from .http.json_body import read_object
from .service import Service

_MAX_SCALE_BYTES = 1 << 16
_MOST = 4096


def build_admin_app(service: Service) -> FastAPI:
    app = new_app(service)
    is_private = is_loopback(service.config.admin_host)

    @app.get("/metrics")
    async def metrics() -> Response:
        status, problem = await _fleet_status(service)
        text = service.metrics.text(status, is_current=problem is None)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/status")
    async def status() -> dict[str, Any]:
        fleet, problem = await _fleet_status(service)
        return status_json(fleet, service, problem)

    @app.get("/scale")
    async def could_scale(request: Request) -> dict[str, Any]:
        """Whether the fleet could do without the seats that ``without`` names, again and again. Changes nothing."""
        if unknown := set(request.query_params) - {"without"}:
            raise bad_value(min(unknown)[:80], "unknown; without can be given")
        seats = request.query_params.getlist("without")
        if not 1 <= len(seats) <= _MOST:
            raise bad_value("without", f"{len(seats)} seats are given; 1 to {_MOST} can be")
        return await _scaled(service, pb.ScaleRequest(without=seats))

    @app.post("/scale")
    async def scale(request: Request) -> dict[str, Any]:
        """As many workers as the body says; what it does not name stays as it is."""
        if not (service.keys.any or is_private):
            host = service.config.admin_host
            message = (
                f"no API key guards the admin port on {host}; start the gateway with one to scale over the network"
            )
            raise ApiError("no_api_key", message)
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            # A page in somebody's browser may post text anywhere, but not this.
            raise ApiError("unsupported_media_type", "content-type: application/json is needed", param="content-type")
        return await _scaled(service, check_scale(await read_object(request, _MAX_SCALE_BYTES)))

    return app


def check_scale(body: dict[str, Any]) -> pb.ScaleRequest:
    """Raises ApiError naming the field, its value and the limit; what is too much for the fleet is the controller's to say."""
    request = pb.ScaleRequest()
    for name, value in body.items():
        if name in ("expert_shards", "attention_workers"):
            if type(value) is not int or not 1 <= value <= _MOST:
                raise bad_value(name, f"{shown(value)} is not a whole number from 1 to {_MOST}")
        elif name == "replicas":
            if type(value) not in (int, float) or not 1 <= value <= _MOST:
                raise bad_value(name, f"{shown(value)} is not a number from 1 to {_MOST}")
        elif name == "drain":
            if not isinstance(value, str) or not value:
                raise bad_value(name, f"{shown(value)} is not the name of a seat")
        else:
            raise bad_value(name[:80], "unknown; expert_shards, attention_workers, replicas and drain can be given")
        setattr(request, name, value)
    if not body:
        raise bad_value(
            "expert_shards", "nothing is given; one of expert_shards, attention_workers, replicas, drain is"
        )
    return request


def status_json(fleet: pb.FleetStatus, service: Service, problem: str | None) -> dict[str, Any]:
    """``problem`` says why the controller did not answer; its workers are then those it named last."""
    workers = [_worker_json(worker) for worker in fleet.workers if worker.seat != service.fleet.seat]
    if problem is not None:
        for worker in workers:
            worker["state"] = "lost" if worker["role"] == "controller" else worker["state"]
    return {
        "ready": fleet.ready and problem is None,
        "missing": problem or fleet.missing or None,
        "settled": fleet.settled and problem is None,
        "replicas": fleet.replicas,
        "shortfall": fleet.shortfall or None,
        "coverage": fleet.coverage,
        "wanted_expert_shards": fleet.wanted_expert_shards or None,
        "epoch": _epoch_text(fleet.epoch),
        "url": service.url,
        "workers": [*workers, _own_json(service)],
    }


async def _scaled(service: Service, request: pb.ScaleRequest) -> dict[str, Any]:
    try:
        reply = await service.fleet.scale(request)
    except FleetError as error:
        raise from_fleet(error) from error
    return {
        "expert_seats": list(reply.expert_seats),
        "attention_seats": list(reply.attention_seats),
        "replicas": reply.replicas,
    }


async def _fleet_status(service: Service) -> tuple[pb.FleetStatus, str | None]:
    try:
        return await service.fleet.status(), None
    except FleetError as error:
        return service.fleet.last_status, f"the controller {service.config.controller} does not answer: {error}"


def _worker_json(worker: pb.WorkerStatus) -> dict[str, Any]:
    report = worker.report
    return {
        "role": worker.role,
        "seat": worker.seat,
        "pid": worker.pid or None,
        "node": worker.node,
        "address": worker.address,
        "state": worker.state,
        "epoch": _epoch_text(report.epoch),
        "numerics": report.numerics or None,
        "backend": report.backend or None,
        "wanted": worker.wanted,
        "quarantined_by": list(worker.quarantined_by),
        "experts": worker.num_experts,
        "bytes": report.bytes_loaded,
        "bytes_total": report.bytes_total,
        "tokens": report.tokens,
        "metrics": dict(report.metrics),
        "error": report.error or None,
    }


def _own_json(service: Service) -> dict[str, Any]:
    own = pb.WorkerStatus(
        role="gateway",
        seat=service.fleet.seat,
        pid=os.getpid(),
        node=socket.gethostname(),
        address=service.fleet.address,
        state=service.fleet.state,
        report=service.fleet.report(),
    )
    return _worker_json(own)


def _epoch_text(epoch: pb.EpochId) -> str | None:
    return str(EpochId.from_proto(epoch)) if epoch.incarnation else None
