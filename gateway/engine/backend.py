"""The attention workers of the current epoch, and the choice among them.

Knows nothing of HTTP or text. A worker that leaves the epoch gets no new sequences; those it runs go on.
"""

import asyncio
import contextlib
import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import grpc

from ...membership.channel import open_channel
from ...membership.epoch import Epoch, Member
from ...proto.errors import Code, FleetError, from_call
from ...proto.generated import generate_pb2 as pb
from ...proto.generated import generate_pb2_grpc as rpc
from ...proto.generated import membership_pb2 as membership
from .affinity import SeenPrefixes, block_hashes
from .crash_attribution import Death

_log = logging.getLogger(__name__)
_DESCRIBE_TIMEOUT_S = 2.0
# A worker may have this many more sequences than the idlest one before a cached prefix no longer decides.
_SLACK = 4


class Worker:
    """One attention worker as this gateway sees it."""

    def __init__(self, member: Member) -> None:
        self.seat = member.seat
        self.address = member.address
        self.numerics = member.numerics
        self.max_model_len = member.max_model_len
        self.running: dict[object, int] = {}  # sequences, and how many tokens of each it had to read
        self.last_used = 0
        self.retired = False
        self._death: Death | None = None
        self.seen = SeenPrefixes()
        self.channel = open_channel(member.address)
        self.stub = rpc.AttentionWorkerStub(self.channel)

    @property
    def num_running(self) -> int:
        return len(self.running)

    @property
    def num_tokens(self) -> int:
        return sum(self.running.values())

    def death(self) -> Death:
        """Of its process; whoever is told of it first asks first, as all that ran then are its victims."""
        if self._death is None:
            self._death = Death(self.seat, self.running)
        return self._death

    def generate(self, request: pb.GenerateRequest, timeout_s: float | None) -> Any:
        """The running call: an async iterator of replies that can be cancelled."""
        return self.stub.Generate(request, timeout=timeout_s)

    async def describe(self) -> membership.WorkerReport:
        try:
            report: membership.WorkerReport = await self.stub.Describe(
                pb.DescribeWorkerRequest(), timeout=_DESCRIBE_TIMEOUT_S
            )
        except grpc.aio.AioRpcError as error:
            raise from_call(error) from error
        return report


class Backend:
    """Belongs to one event loop."""

    def __init__(self) -> None:
        self._workers: dict[str, Worker] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._updated = asyncio.Event()  # replaced by every update
        self._num_picks = 0
        self.isolation = asyncio.Lock()  # held by the one suspect that runs

    @property
    def workers(self) -> list[Worker]:
        return list(self._workers.values())

    @property
    def max_model_len(self) -> int | None:
        """What a sequence may have on any of them; None while none has said."""
        return min((worker.max_model_len for worker in self.workers if worker.max_model_len), default=None)

    def update(self, epoch: Epoch) -> None:
        """Follows the epoch; a seat at a new address is a new worker."""
        members = {member.address: member for member in epoch.attention}
        for address in set(self._workers) - set(members):
            worker = self._workers.pop(address)
            worker.retired = True
            self._close_if_done(worker)
        for address, member in members.items():
            if address not in self._workers:
                self._workers[address] = Worker(member)
            self._workers[address].numerics = member.numerics
            self._workers[address].max_model_len = member.max_model_len
        self._updated.set()
        self._updated = asyncio.Event()

    async def wait_for_update(self, timeout_s: float) -> None:
        """Returns with the next epoch, at the latest after ``timeout_s``."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._updated.wait(), timeout_s)

    def pick(
        self, prompt_ids: Sequence[int], *, salt: str = "", numerics: str = "", avoid: Collection[Worker] = ()
    ) -> Worker:
        """The worker with the fewest sequences, and among equals the fewest tokens, or a nearly as idle one that has seen more of the prompt."""
        fitting = [
            worker for worker in self._workers.values() if worker not in avoid and numerics in ("", worker.numerics)
        ]
        if not fitting:
            wanted = f" of numerics class {numerics!r}" if numerics else ""
            raise FleetError(Code.NOT_READY, f"no {'other ' if avoid else ''}attention worker{wanted} is in the fleet")
        hashes = block_hashes(prompt_ids, salt) if len(self._workers) > 1 else []
        idle_enough = min(worker.num_running for worker in fitting) + _SLACK
        best = max(
            (worker for worker in fitting if worker.num_running <= idle_enough),
            key=lambda worker: (
                worker.seen.num_matching(hashes),
                -worker.num_running,
                -worker.num_tokens,
                -worker.last_used,
            ),
        )
        self._num_picks += 1
        best.last_used = self._num_picks
        best.seen.add(hashes)
        return best

    @contextmanager
    def running(self, worker: Worker, sequence: object, num_tokens: int) -> Iterator[None]:
        """``sequence`` is one more on the worker, which has to read so many tokens before it goes on."""
        worker.running[sequence] = num_tokens
        try:
            yield
        finally:
            worker.running.pop(sequence, None)
            self._close_if_done(worker)

    async def close(self) -> None:
        for worker in self._workers.values():
            await worker.channel.close()
        self._workers.clear()
        if self._closing:
            await asyncio.gather(*self._closing)

    def _close_if_done(self, worker: Worker) -> None:
        if worker.retired and worker.num_running == 0:
            task = asyncio.get_running_loop().create_task(worker.channel.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
