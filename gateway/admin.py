"""The routes of the admin port: metrics and the fleet's status, besides health and readiness.

Knows nothing of the API. Both come from the controller when asked, and from its last answer while it is away.
"""

import os
import socket
from typing import Any

from fastapi import FastAPI
from starlette.responses import Response

from ..membership.epoch import EpochId
from ..proto.errors import FleetError
from ..proto.generated import membership_pb2 as pb
from .app import new_app
from .service import Service


def build_admin_app(service: Service) -> FastAPI:
    app = new_app(service)

    @app.get("/metrics")
    async def metrics() -> Response:
        status, _ = await _fleet_status(service)
        text = service.metrics.text(status.workers)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/status")
    async def status() -> dict[str, Any]:
        fleet, problem = await _fleet_status(service)
        return status_json(fleet, service, problem)

    return app


def status_json(fleet: pb.FleetStatus, service: Service, problem: str | None) -> dict[str, Any]:
    """``problem`` says why the controller did not answer; its workers are then those it named last."""
    workers = [_worker_json(worker) for worker in fleet.workers if worker.seat != service.config.seat]
    if problem is not None:
        for worker in workers:
            worker["state"] = "lost" if worker["role"] == "controller" else worker["state"]
    return {
        "ready": fleet.ready and problem is None,
        "missing": problem or fleet.missing or None,
        "epoch": _epoch_text(fleet.epoch),
        "url": service.url,
        "workers": [*workers, _own_json(service)],
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
        seat=service.config.seat,
        pid=os.getpid(),
        node=socket.gethostname(),
        address=service.fleet.address,
        state=service.fleet.state,
        report=service.fleet.report(),
    )
    return _worker_json(own)


def _epoch_text(epoch: pb.EpochId) -> str | None:
    return str(EpochId.from_proto(epoch)) if epoch.incarnation else None
