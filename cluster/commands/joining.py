"""What a node finds out before anything of Ray starts: whether it could join, and whether its seat is free.

Knows nothing of Ray's processes. 1. Its own address; 2. the controller is asked, and what it answers is said; 3. the checkpoint, dtype and
versions are compared with the fleet's; 4. the seat: who holds it keeps it; 5. whether Ray's head of this fleet is at ``--head``.
What waiting cannot mend is a ClusterError that names the flag; a head that is not there yet is waited for.
"""

import importlib.metadata
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

import grpc

from ...attention_workers.config import AttentionConfig
from ...checkpoint.files import CheckpointFiles
from ...expert_workers.config import ExpertConfig
from ...expert_workers.fetch_headers import ask_heads
from ...expert_workers.memory import num_experts_in
from ...membership.entrance import AwayError, EntranceError, ask_controller, check_own, fault_of_wire
from ...membership.port_probe import UnknownHostError, look_up, why_unreachable
from ...proto.errors import FleetError
from ...proto.generated import membership_pb2 as pb
from ..errors import ClusterError
from ..ray.settings import token_from
from .stop import Stop

RoleConfig = ExpertConfig | AttentionConfig
IfTaken = Literal["end", "wait"]
T = TypeVar("T")
_POLL_S = 0.5
_SAY_EVERY_S = 15.0
_REACH_S = 1.0
# The controller answers, and so Ray's head was there before it: it may just be starting again.
_RAY_AWAY_S = 10.0
_NO_NAMES_S = 10.0
# A holder that does not report for a lease is gone; one that says it is going may take a little longer.
_GONE_S = 5.0
_GOING_S = 30.0
_SAME_S = 1e-3
_RAY_IS_THERE = "/ray.rpc.NodeInfoGcsService/GetClusterId"
_GOING = ("draining", "failed")


class SeatTakenError(ClusterError):
    """Another process serves the seat."""


def versions() -> dict[str, str]:
    """What Ray wants to be equal on all its nodes."""
    return {"python": platform.python_version(), "ray": importlib.metadata.version("ray")}


def describe_holder(worker: pb.WorkerStatus) -> str:
    where = f"{worker.node} at {worker.address}"
    return f"{worker.seat} is held by pid {worker.pid} on {where}, {worker.state}, for {worker.held_s:.0f} s"


@dataclass(frozen=True)
class Joining:
    """``wait_s`` is for a head that is not there yet."""

    head: str
    controller: str
    config: RoleConfig
    wait_s: float
    if_taken: IfTaken
    stop: Stop
    say: Callable[[str], None]

    def check(self) -> None:
        """Returns when the seat is free and the head is there. Raises ClusterError when that will not come about."""
        seat, host = self.config.seat, self.config.host
        self.say(f"{seat} at {host} joins the head {self.head} and its controller {self.controller}")
        check_own(host)
        status = self._answered("controller", self.controller, self._ask, self.wait_s)
        holder = _holder(status)
        who = describe_holder(holder) if holder is not None else f"{seat} is free"
        self.say(f"controller {self.controller} answers: checkpoint {status.fingerprint[:16]}…, {status.dtype}; {who}")
        _check_versions(status)
        self._check_checkpoint(status)
        if holder is not None:
            self._wait_for_seat(holder)
        self._answered("head", self.head, self._ask_ray, _RAY_AWAY_S)

    def _answered(self, flag: str, address: str, ask: Callable[[], T], wait_s: float) -> T:
        """What ``ask`` returns, as soon as somebody is there."""
        began, said = time.monotonic(), -_SAY_EVERY_S
        while True:
            try:
                look_up(address.rpartition(":")[0].strip("[]"))
                return ask()
            except UnknownHostError as error:
                if not error.may_pass or time.monotonic() - began > _NO_NAMES_S:
                    raise ClusterError(f"{flag}: {address}: {error}; correct --{flag}") from error
                why = str(error)
            except AwayError as error:
                why = str(error)
            if time.monotonic() - began > wait_s:
                raise ClusterError(
                    f"{flag}: {address} has not answered for {wait_s:g} s ({why}); start the head, or correct --{flag}"
                )
            if time.monotonic() - said >= _SAY_EVERY_S:
                said = time.monotonic()
                self.say(f"waiting for the head, whose {flag} is to be at {address}: {why}")
            self.stop.wait_until(lambda: False, _POLL_S)

    def _ask(self) -> pb.FleetStatus:
        try:
            return ask_controller(self.controller, self.config.seat, self.config.wire)
        except EntranceError as error:
            raise ClusterError(str(error)) from error

    def _check_checkpoint(self, status: pb.FleetStatus) -> None:
        config = self.config
        is_expert = isinstance(config, ExpertConfig)
        if status.dtype != config.dtype:
            what = f"dtype: {config.seat} would compute in {config.dtype}, this fleet in {status.dtype}"
            raise ClusterError(f"{what}; give --dtype {status.dtype}")
        try:
            ask = partial(ask_heads, self.controller, wait_s=_RAY_AWAY_S) if is_expert else None
            with CheckpointFiles.open(config.model, config.shared_model, ask) as checkpoint:
                ours, expert_bytes = checkpoint.fingerprint, checkpoint.config.expert_bytes
        except FleetError as error:
            raise ClusterError(f"model: {config.model}: {error}") from error
        if ours != status.fingerprint:
            raise ClusterError(
                f"model: {config.seat} has opened checkpoint {ours[:16]}… in {config.model}, this fleet serves "
                f"{status.fingerprint[:16]}…; give --model the fleet's"
            )
        if isinstance(config, ExpertConfig):
            num_experts_in(config.memory_gib, expert_bytes)

    def _wait_for_seat(self, holder: pb.WorkerStatus) -> None:
        """Returns once nobody has it. Raises SeatTakenError where somebody keeps it, and this node was not told to wait."""
        since = time.monotonic()
        if self.if_taken == "wait":
            self.say(f"waiting until {holder.seat} is free")
        now_holder: pb.WorkerStatus | None = holder
        while now_holder is not None:
            passed = time.monotonic() - since
            if self.if_taken == "end" and _stays(holder, now_holder, passed):
                raise SeatTakenError(f"seat: {describe_holder(now_holder)}; give another --seat, or --if-taken wait")
            self.stop.wait_until(lambda: False, _POLL_S)
            now_holder = _holder(self._answered("controller", self.controller, self._ask, self.wait_s))

    def _ask_ray(self) -> None:
        """Raises AwayError while nobody listens at --head."""
        if reason := why_unreachable(self.head, _REACH_S):
            raise AwayError(reason)
        shown = (("authorization", f"Bearer {token_from(self.config.cluster_token)}"),)
        with grpc.insecure_channel(self.head, [("grpc.enable_http_proxy", 0)]) as channel:
            try:
                channel.unary_unary(_RAY_IS_THERE)(b"", timeout=_REACH_S * 2, metadata=shown)
                return
            except grpc.RpcError as error:
                code = error.code()
        remedy = "give HOST:PORT of the head's --ray-port"
        if code is grpc.StatusCode.UNAUTHENTICATED:
            raise ClusterError(f"head: what answers at {self.head} is not Ray's head of this fleet; {remedy}")
        if code is grpc.StatusCode.UNIMPLEMENTED:
            raise ClusterError(f"head: what answers at {self.head} is no head of Ray; {remedy}")
        if fault := fault_of_wire("head", self.head, None):
            raise ClusterError(fault)
        raise AwayError(f"Ray says nothing there ({code.name})")


def _holder(status: pb.FleetStatus) -> pb.WorkerStatus | None:
    return next((worker for worker in status.workers if worker.lease_id), None)


def _stays(before: pb.WorkerStatus, now: pb.WorkerStatus, passed_s: float) -> bool:
    """Whether it has reported since, or the time is over in which somebody who is gone, or going, would have lost the seat."""
    if now.lease_id != before.lease_id:
        return True
    if now.state in _GOING:
        return passed_s > _GOING_S
    return _reported_at(now) > _reported_at(before) + _SAME_S or passed_s > _GONE_S


def _reported_at(holder: pb.WorkerStatus) -> float:
    """When it reported last, in seconds since it registered."""
    return holder.held_s - holder.silent_s


def _check_versions(status: pb.FleetStatus) -> None:
    for name, ours in versions().items():
        theirs = status.versions.get(name, ours)
        if theirs != ours:
            raise ClusterError(
                f"{name}: version {ours} is installed here, {theirs} on the head; Ray joins equal ones alone"
            )
