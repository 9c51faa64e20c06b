"""What a process finds out before it starts anything: whether its address is its own, and what the fleet's controller answers.

Knows nothing of seats and models. What waiting cannot mend is an EntranceError, whose one line names the flag, its value and the remedy.
"""

import contextlib
from collections.abc import Mapping
from pathlib import Path

import grpc
import psutil

from ..proto.errors import Code, FleetError
from ..proto.generated import membership_pb2 as pb
from . import security
from .client import MembershipClient
from .port_probe import UnknownHostError, is_own, look_up, speaks_http, speaks_tls, why_no_handshake, why_unreachable

_REACH_S = 1.0


class EntranceError(ValueError):
    """It cannot join with these settings, however long it waits."""


class AwayError(Exception):
    """Nobody has answered, and somebody may yet."""


def check_entrance(settings: security.WireSecurity, hosts: Mapping[str, str], controller: str | None) -> None:
    """For a process that waits for its controller later on: one that is away is no fault. ``hosts``: by flag, where it will listen.

    Raises EntranceError.
    """
    security.secure(settings)
    for flag, host in hosts.items():
        check_own(host, flag)
    if controller is not None:
        with contextlib.suppress(AwayError, UnknownHostError):
            look_up(controller.rpartition(":")[0].strip("[]"))
            ask_controller(controller, "", settings)


def check_own(host: str, flag: str = "host") -> None:
    """Raises EntranceError for what is no address of this machine."""
    option = f"--{flag.replace('_', '-')}"
    try:
        found = is_own(host.strip("[]"))
    except UnknownHostError as error:
        raise EntranceError(f"{flag}: {error}; give an address of this machine to {option}") from error
    if not found:
        own = sorted({each.address for card in psutil.net_if_addrs().values() for each in card if "." in each.address})
        what = f"{flag}: {host} is no address of this machine, which has {', '.join(own)}; correct {option}"
        raise EntranceError(what)


def ask_controller(controller: str, seat: str, settings: security.WireSecurity) -> pb.FleetStatus:
    """What it says of ``seat``, or of all. Raises AwayError while nobody answers, and EntranceError where nobody ever will."""
    if reason := why_unreachable(controller, _REACH_S):
        raise AwayError(reason)
    # NOTE: gRPC would log a handshake that fails.
    if settings.tls_dir is not None and (fault := fault_of_wire("controller", controller, settings.tls_dir)):
        raise EntranceError(fault)
    with MembershipClient(controller) as client:
        try:
            return client.status(seat)
        except FleetError as error:
            raise _explained(error, controller, settings) from error


def _explained(error: FleetError, controller: str, settings: security.WireSecurity) -> Exception:
    """Why the controller's port did not give an answer."""
    status = error.__cause__.code() if isinstance(error.__cause__, grpc.RpcError) else None
    if error.code is Code.UNAUTHENTICATED:
        refusal = f"the controller at {controller} refuses it" if settings.token else f"none is given to {controller}"
        return EntranceError(f"cluster_token: {refusal} ({error}); give the --cluster-token of that fleet's head")
    if status in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAUTHENTICATED):
        return EntranceError(
            f"controller: what answers at {controller} is no controller of a fleet ({error}); "
            "give HOST:PORT of the head's --controller-port"
        )
    fault = fault_of_wire("controller", controller, settings.tls_dir)
    return EntranceError(fault) if fault else AwayError(str(error))


def fault_of_wire(flag: str, address: str, tls_dir: Path | None) -> str:
    """What is wrong with how the two ends talk; empty if nothing is known."""
    if tls_dir is None and speaks_tls(address):
        what = f"tls_dir: none is given, and {address} speaks TLS"
        return f"{what}; give the --tls-dir that the head has, or correct --{flag}"
    if speaks_http(address):
        return f"{flag}: an HTTP server answers at {address}, no head of a fleet; correct --{flag}"
    context = security.socket_context(server_side=False) if tls_dir is not None else None
    if context is not None and (why := why_no_handshake(address, context, security.MEMBER_NAME)):
        return (
            f"tls_dir: {tls_dir}: no TLS with the controller at {address}: {why}; both ends need certificates of one authority "
            "that are valid now"
        )
    return ""
