"""Process groups of two ranks: rows from one process's memory to another's, by NCCL; CI runs the same over gloo, which needs no GPU.

Knows nothing of lanes and frames. The attention worker is rank 0 and hosts the store at which both meet, the shard is rank 1.
There is a group for each direction, as operations of one NCCL group run in the order in which each end began them: sends and
receives of two independent ends in one group would wait for each other. Both ends must begin the same transfers in the same order;
``number`` tags them where the transport can. No default group is used, so that a lane's fate is its own.
"""

import contextlib
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, Protocol

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from ..proto.address import join_address, own_host, split_address
from ..proto.frame_prefix import NO_PAIR

BACKEND: Literal["nccl", "gloo"] = "nccl"  # NOTE: only tests choose gloo
_FORMING_S = 5.0
_POLL_S = 50e-6
_NEVER_SENT = (1 << 30) + 1


@dataclass(frozen=True)
class PairSettings:
    """What an end is told: the transport, rows from how many bytes on travel by it, and the device NCCL sends from."""

    transport: Literal["none", "nccl"] = NO_PAIR
    least_bytes: int = 0
    device: str = "cuda"

    def check(self) -> None:
        """Raises ValueError for a transport that this machine does not have."""
        if self.transport == NO_PAIR or BACKEND == "gloo":
            return
        if not (torch.cuda.is_available() and dist.is_nccl_available()):
            raise ValueError("pair_transport: nccl needs an NVIDIA GPU and a PyTorch with NCCL")
        if not self.device.startswith("cuda"):
            raise ValueError("pair_transport: nccl sends from a GPU; give --device cuda as well")


ALL_ON_THE_LANE = PairSettings()


class Group(Protocol):
    """One direction. Every operation may raise RuntimeError, and after ``abort`` may also return with nothing done."""

    def send(self, rows: torch.Tensor, number: int, timeout_s: float) -> None: ...

    def receive(self, rows: torch.Tensor, number: int, timeout_s: float) -> None: ...

    def abort(self) -> None:
        """From any thread: what is under way ends soon."""
        ...


@dataclass(frozen=True)
class Groups:
    """An end's two directions."""

    outgoing: Group
    incoming: Group


class GlooGroup:
    def __init__(self, store: Store, rank: int, host: str, settings: PairSettings) -> None:
        options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._timeout = timedelta(seconds=_FORMING_S)
        options._threads = 1
        options._devices = [dist.ProcessGroupGloo.create_device(hostname=host)]
        self._group: Any = dist.ProcessGroupGloo(store, rank, 2, options)
        self._peer = 1 - rank

    def send(self, rows: torch.Tensor, number: int, timeout_s: float) -> None:
        self._group.send([rows], self._peer, number).wait(timedelta(seconds=timeout_s))

    def receive(self, rows: torch.Tensor, number: int, timeout_s: float) -> None:
        self._group.recv([rows], self._peer, number).wait(timedelta(seconds=timeout_s))

    def abort(self) -> None:
        """gloo's own abort leaves waits waiting; an operation that times out closes the connection under all of them."""
        with contextlib.suppress(RuntimeError):
            self._group.recv([torch.empty(1)], self._peer, _NEVER_SENT).wait(timedelta(milliseconds=1))


class NcclGroup:
    """Rows are staged on the GPU. Deadlines are this class's own: NCCL's watchdog would end the process."""

    def __init__(self, store: Store, rank: int, host: str, settings: PairSettings) -> None:
        os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = "0"
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = timedelta(seconds=_FORMING_S)
        self._device = torch.device(settings.device)
        self._group: Any = dist.ProcessGroupNCCL(store, rank, 2, options)
        self._peer = 1 - rank

    def send(self, rows: torch.Tensor, number: int, timeout_s: float) -> None:
        with torch.cuda.device(self._device):
            self._finish(self._group.send([rows.to(self._device)], self._peer, number), timeout_s)

    def receive(self, rows: torch.Tensor, number: int, timeout_s: float) -> None:
        with torch.cuda.device(self._device):
            staged = rows.to(self._device)
            self._finish(self._group.recv([staged], self._peer, number), timeout_s)
            rows.copy_(staged)

    def abort(self) -> None:
        self._group.abort()

    def _finish(self, work: dist.Work, timeout_s: float) -> None:
        end = time.monotonic() + timeout_s
        while not work.is_completed():
            if time.monotonic() > end:
                raise RuntimeError(f"no end in {timeout_s:.3f} s")
            time.sleep(_POLL_S)
        work.wait()


_GROUPS: dict[str, Callable[[Store, int, str, PairSettings], Group]] = {"gloo": GlooGroup, "nccl": NcclGroup}


def host_pair(settings: PairSettings, towards: str, tell: Callable[[str], None]) -> Groups:
    """The worker's end: waits at a store whose address it ``tell``s for an end at the host of ``towards``.

    Raises OSError or RuntimeError when they do not meet.
    """
    host = own_host(towards)
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listening:
        listening.bind((host, 0))
        listening.listen()
        port = listening.getsockname()[1]
        tell(join_address(host, port))
        store = _store(host, port, listening.detach())
    return _form(settings, store, 0, host)


def join_pair(settings: PairSettings, address: str) -> Groups:
    """The shard's end. Raises OSError or RuntimeError."""
    return _form(settings, _store(*split_address(address)), 1, own_host(address))


def _store(host: str, port: int, listening: int | None = None) -> Store:
    return TCPStore(
        host, port, 2, listening is not None, timedelta(seconds=_FORMING_S),
        wait_for_workers=False, master_listen_fd=listening,
    )  # fmt: skip


def _form(settings: PairSettings, store: Store, rank: int, host: str) -> Groups:
    """Formed is what a transfer each way has passed through."""
    rows, results = (_GROUPS[BACKEND](PrefixStore(way, store), rank, host, settings) for way in ("rows", "results"))
    outgoing, incoming = (rows, results) if rank == 0 else (results, rows)
    trial = torch.zeros(1)
    for step in (outgoing.send, incoming.receive) if rank == 0 else (incoming.receive, outgoing.send):
        step(trial, 0, _FORMING_S)
    return Groups(outgoing, incoming)
