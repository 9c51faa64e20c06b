"""The other shards of the fleet as sources of experts: who holds which, and an expert's weights from one of them.

Knows nothing of files and kernels. 1. The controller's status says who is there and holds what; while it is away the last one
counts; 2. those that hold an expert are asked first, then the others, which may have it in their files; 3. whoever does not answer,
or has not got a file, is left alone for a while. For the loader's thread; ``close`` may be called from any.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field

import grpc
import numpy as np
import numpy.typing as npt

from ..checkpoint.model_config import ModelConfig
from ..kernels.expert_layer import ExpertWeights
from ..membership import security
from ..membership.epoch import ExpertSet
from ..proto.errors import Code, FleetError, from_call
from ..proto.generated import expert_pb2, expert_pb2_grpc, membership_pb2, membership_pb2_grpc
from .expert_stream import from_pieces

_logger = logging.getLogger(__name__)
_OPTIONS = [("grpc.enable_http_proxy", 0)]
_STATUS_S = 2.0
_FRESH_S = 2.0
_PEER_S = 20.0
_EXPERT_S = 60.0
_AVOID_S = 10.0
_THERE = ("starting", "loading", "ready", "leaving", "draining")


@dataclass(frozen=True)
class Peer:
    seat: str
    address: str
    held: ExpertSet


@dataclass
class _Avoided:
    until: float
    reason: str


@dataclass
class Failure:
    """What every peer said of one expert."""

    reasons: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "; ".join(self.reasons) or "no other shard is known"


class Peers:
    """``seat`` is the shard's own, which is no peer of itself."""

    def __init__(self, controller: str, seat: str, config: ModelConfig, fingerprint: str) -> None:
        self._seat, self._config, self._fingerprint = seat, config, fingerprint
        self._controller = controller
        self._channels: dict[str, grpc.Channel] = {}
        self._peers: tuple[Peer, ...] = ()
        self._looked_at = -_FRESH_S
        self._avoided: dict[tuple[str, str], _Avoided] = {}  # address, and the file that it lacks or ""
        self._closed = False

    def read(self, layer: int, expert: int, file: str) -> ExpertWeights | Failure:
        """The weights of an expert that the checkpoint has in ``file``."""
        failure, give_up = Failure(), time.monotonic() + _EXPERT_S
        for peer in self._in_order(layer, expert):
            left_s = min(_PEER_S, give_up - time.monotonic())
            if left_s <= 0 or self._closed:
                failure.reasons.append(f"{_EXPERT_S:g} s are over" if not self._closed else "this shard ends")
                break
            is_holder = peer.held.holds(layer, expert)
            if (avoided := self._is_avoided(peer, "" if is_holder else file)) is not None:
                failure.reasons.append(f"{peer.seat}: {avoided}")
                continue
            try:
                return self._read_from(peer, layer, expert, left_s)
            except FleetError as error:
                failure.reasons.append(f"{peer.seat}: {error}")
                self._note(peer, file, error, is_holder)
        return failure

    def num_copies(self) -> npt.NDArray[np.int64]:
        """[num_layers, num_experts]: how many other shards hold each expert."""
        copies = np.zeros((self._config.num_layers, self._config.num_experts), dtype=np.int64)
        for peer in self._look():
            copies += peer.held.mask
        return copies

    def close(self) -> None:
        """What is under way ends at once."""
        self._closed = True
        for channel in list(self._channels.values()):
            channel.close()

    def _in_order(self, layer: int, expert: int) -> Iterator[Peer]:
        """Holders first; among equals each expert begins with another one."""
        peers = self._look()
        turn = (layer + expert) % max(1, len(peers))
        turned = [*peers[turn:], *peers[:turn]]
        yield from (peer for peer in turned if peer.held.holds(layer, expert))
        yield from (peer for peer in turned if not peer.held.holds(layer, expert))

    def _look(self) -> tuple[Peer, ...]:
        now = time.monotonic()
        if now - self._looked_at < _FRESH_S or self._closed:
            return self._peers
        self._looked_at = now
        try:
            with closing(security.open_blocking_channel(self._controller, _OPTIONS)) as channel:
                stub = membership_pb2_grpc.MembershipStub(channel)
                status = stub.Status(membership_pb2.StatusRequest(), timeout=_STATUS_S)
        except grpc.RpcError as error:
            _logger.info("%s asks the shards that it knows, the controller does not answer: %s", self._seat, error)
            return self._peers
        self._peers = tuple(
            Peer(worker.seat, worker.address, self._held(worker))
            for worker in status.workers
            if worker.role == "expert" and worker.seat != self._seat and worker.state in _THERE
        )
        self._forget_others()
        return self._peers

    def _held(self, worker: membership_pb2.WorkerStatus) -> ExpertSet:
        nothing = ExpertSet.empty(self._config.num_layers, self._config.num_experts)
        if not worker.report.held.bits:
            return nothing
        held = ExpertSet.from_proto(worker.report.held)  # the controller has checked it
        return held if held.mask.shape == nothing.mask.shape else nothing

    def _forget_others(self) -> None:
        known = {peer.address for peer in self._peers}
        for address in [address for address in self._channels if address not in known]:
            self._channels.pop(address).close()
        self._avoided = {key: avoided for key, avoided in self._avoided.items() if key[0] in known}

    def _read_from(self, peer: Peer, layer: int, expert: int, timeout_s: float) -> ExpertWeights:
        if peer.address not in self._channels:
            self._channels[peer.address] = security.open_blocking_channel(peer.address, _OPTIONS)
        stub = expert_pb2_grpc.ExpertShardStub(self._channels[peer.address])
        request = expert_pb2.ReadExpertRequest(fingerprint=self._fingerprint, layer=layer, expert=expert)
        try:
            pieces = stub.ReadExpert(request, timeout=timeout_s)
            try:
                return from_pieces(self._config, layer, expert, pieces)
            finally:
                pieces.cancel()  # what is refused is not read to its end
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                raise FleetError(Code.UNSUPPORTED, "is of an older version, which hands out no experts") from error
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise FleetError(Code.DEADLINE, f"did not give it within {timeout_s:.0f} s") from error
            raise from_call(error) from error
        except ValueError as error:  # what gRPC raises for a channel that was closed
            raise FleetError(Code.LANE_LOST, f"the connection was closed: {error}") from error

    def _note(self, peer: Peer, file: str, error: FleetError, is_holder: bool) -> None:
        """Who has just given an expert back may still hold the next one of the same file."""
        if error.code is Code.NOT_HELD and is_holder:
            return
        lacks = file if error.code is Code.NOT_HELD else ""
        if not lacks and (channel := self._channels.pop(peer.address, None)) is not None:
            channel.close()  # the next one is made with the certificate of then
        self._avoided[peer.address, lacks] = _Avoided(time.monotonic() + _AVOID_S, str(error))

    def _is_avoided(self, peer: Peer, file: str) -> str | None:
        for key in ((peer.address, ""), (peer.address, file)):
            avoided = self._avoided.get(key)
            if avoided is not None and time.monotonic() < avoided.until:
                return avoided.reason
        return None
