"""``expertfleet serve``: checks everything that can be known beforehand, then runs one fleet until a signal.

Knows nothing of how a fleet runs. 1. The checkpoint, the plan, the memory and the ports, before any worker starts;
2. the fleet; 3. ``ready URL`` alone on a line of standard output, everything else on standard error.
"""

import dataclasses
import os
import secrets
import sys

from ...checkpoint.check import check
from ...checkpoint.files import CheckpointFiles
from ...expert_workers.memory import available_memory
from ...expert_workers.numa import numa_nodes
from ...membership.security import secure
from .config import FleetConfig
from .fleet import Fleet, Ports
from .gateway_process import claim_port, http_url
from .resource_plan import ResourcePlan, available_cores, fitting_plan
from .stop import Stop, StopAsked


def serve(config: FleetConfig) -> int:
    stop = Stop()
    stop.install()
    if not config.cluster_token:
        config = dataclasses.replace(config, cluster_token=secrets.token_urlsafe())
    secure(config.wire)
    try:
        plan = prepare(config, stop)
        available_bytes = available_memory()
        if config.memory_gib is None:
            config = dataclasses.replace(config, memory_gib=plan.memory_for_experts(available_bytes))
        budget = dataclasses.replace(plan.budget, memory_gib=config.memory_gib, available_bytes=available_bytes)
        ports = claim_ports(config)
        fleet = Fleet(config, dataclasses.replace(plan, budget=budget), ports, os.environ.copy(), stop, say)
    except StopAsked:
        return 0
    try:
        fleet.start()
        print(f"ready {http_url(config.host, ports.api)}", flush=True)
        fleet.watch()
    except StopAsked:
        _drain(fleet, stop)
    finally:
        stop.tolerated = sys.maxsize
        fleet.end()
    return 0


def _drain(fleet: Fleet, stop: Stop) -> None:
    say("ending: running requests may finish, a second signal ends them")
    stop.tolerated = 1
    try:
        fleet.drain()
    except StopAsked:
        say("ending at once")


def prepare(config: FleetConfig, stop: Stop) -> ResourcePlan:
    """The plan, once the checkpoint is known to be whole and the memory to suffice."""
    config.check_roles()
    with CheckpointFiles.open(*config.model_folders) as checkpoint:
        plan = fitting_plan(config, checkpoint, available_cores(), numa_nodes(), available_memory())
        say(f"checking {config.model}")
        check(checkpoint, lambda done, total: stop.check(), available_cores())
    return plan


def claim_ports(config: FleetConfig) -> Ports:
    api = claim_port(config.host, config.port, "--port")
    admin = claim_port(config.admin_host, config.admin_port, "--admin-port")
    return Ports(api, admin, claim_port("127.0.0.1", config.controller_port, "--controller-port"))


def dry_run(config: FleetConfig) -> dict[str, object]:
    """The plan as plain values, if `serve` would begin with it; nothing is started and no tensor is read."""
    config.check_roles()
    with CheckpointFiles.open(*config.model_folders) as checkpoint:
        return fitting_plan(config, checkpoint, available_cores(), numa_nodes(), available_memory()).describe()


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
