"""The worker's end of one lane: a long-lived connection to one expert shard, opened again whenever it breaks.

Knows nothing of what routes mean: it carries frames and hands answers to whoever posted. Everything here belongs to the
reactor's thread, but for the connecting, which is a task on the IO loop.
1. A local socket where the shard is on this machine and offers one, else a gRPC stream; 2. HELLO both ways; 3. ``post``
frames, each with a sink for its answers, and ``drop`` each when its answers are no longer needed; 4. when the connection
breaks, every waiting sink gets LANE_LOST and the lane is down until the next HELLO.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..kernels.native_lanes import WorkerEnd, close_end
from ..proto.codec import Dispatch, Error, Filled, Hello, Result, decode, encode_hello
from ..proto.errors import Code, FleetError
from ..proto.io_thread import IoThread
from ..proto.layout import Buffer
from ..proto.local_lane import connect_locally
from ..proto.pair_frames import PairAt, Paired, PairedResult, Taken
from ..proto.pair_group import PairSettings
from ..proto.reactor import Reactor, Timer
from ..proto.shared_memory import Arena
from .connection import Connection, Sent
from .grpc_connection import GrpcConnection
from .local_connection import LocalConnection
from .pace import ExpertPace, Pace

logger = logging.getLogger(__name__)

Sink = Callable[[Result | FleetError], None]
_MAX_BACKOFF_S = 1.0
_GREETING_S = 5.0
_SUSPICION_S = 1.0


@dataclass(slots=True)
class _Sent:
    """A frame that was posted. Its memory is free when the shard has ended it and nobody needs its answers."""

    sink: Sink | None
    num_left: int  # routes without an answer; 0 also after an error
    on_noted: Callable[[int], None] | None = None  # hears of that many more routes
    failed: bool = False  # an error may overtake results whose rows come another way


class Lane:
    """``on_change`` is called whenever the lane goes up or down; ``local`` allows local sockets, ``tcp`` frames beside gRPC."""

    def __init__(
        self,
        seat: str,
        address: str,
        hello: Hello,
        io: IoThread,
        reactor: Reactor,
        on_change: Callable[[], None],
        *,
        local: bool = True,
        tcp: bool = True,
        pair: PairSettings,
    ) -> None:
        self.seat = seat
        self.address = address
        self.up = False
        self.suspected = False  # it was silent for unusually long; passes by itself
        self.quarantined = False  # it gave an answer that a replica refuted; for as long as this lane exists
        self.pace = Pace()
        self.expert_pace = ExpertPace()
        self.end = WorkerEnd(seconds_per_expert=self.expert_pace.expected_s(1))
        close_end(self.end)
        self.last_error: FleetError | None = None
        self.limits = hello  # the shard's, once it has greeted
        self.version = hello.newest  # of the lane's frames, once both ends have greeted
        self._hello = hello
        self._io, self._reactor = io, reactor
        self._on_change = on_change
        self._local, self._tcp = local, tcp
        self._pair = pair
        self._sent: dict[int, _Sent] = {}
        self._connection: Connection | None = None
        self._greeting: Timer | None = None
        self._suspicion: Timer | None = None
        self._closed = False
        self._connecting = io.spawn(self._keep_connected())

    def max_rows(self, row_bytes: int, top_k: int) -> int:
        """How many rows with ``top_k`` routes each a frame may have; at least 1."""
        if self._connection is None:
            return 1
        return max(1, self._connection.max_rows(self.limits, row_bytes, top_k))

    def post(self, frame: Dispatch, row_ids: torch.Tensor | None, sink: Sink) -> None:
        """Sends ``frame`` with the rows ``row_ids`` of its own (or all): ``sink`` gets RESULT pieces, or one FleetError."""
        if not self.up or self._connection is None:
            sink(FleetError(Code.LANE_LOST, f"the lane to {self.seat} is down"))
            return
        self._sent[frame.frame_id] = _Sent(sink, len(frame.route_rows))
        try:
            self._connection.post(frame, row_ids)
        except FleetError as error:
            del self._sent[frame.frame_id]
            sink(error)

    def sent(self, sent: Sent, sink: Sink, on_noted: Callable[[int], None]) -> None:
        """As ``post``, for what a compiled call has sent by this lane's ``end``; ``on_noted`` hears of the number of routes whose answers
        have been written down since."""
        assert self._connection is not None, "its end is open"
        self._sent[sent.frame_id] = _Sent(sink, sent.num_routes, on_noted)
        self._connection.sent(sent)

    def ignore(self, frame_id: int) -> None:
        """Answers that are still to come are not written down; the memory of those that came stays as it is."""
        if self._connection is not None:
            self._connection.ignore(frame_id)

    def drop(self, frame_id: int) -> None:
        """The answers to a frame are no longer needed, neither those that came nor those to come."""
        sent = self._sent.get(frame_id)
        if sent is None or self._connection is None:
            return
        sent.sink = None
        if sent.num_left:
            self._connection.ignore(frame_id)
            if self._connection.cancel(frame_id):
                return
        self._forget(frame_id)

    def observe(self, num_experts: int, seconds: float, now: float) -> None:
        """The shard took so long for so many."""
        self.expert_pace.observe(num_experts, seconds, now)
        self.end.seconds_per_expert = self.expert_pace.expected_s(1)

    def suspect(self) -> None:
        """For a moment, or until the shard says anything."""
        if self.up and not self.suspected:
            self.suspected = True
            self._suspicion = self._reactor.call_later(_SUSPICION_S, self._trust)
            self._on_change()

    def _trust(self) -> None:
        if self.suspected:
            self._forgive()
            self._on_change()

    def _forgive(self) -> None:
        self.suspected = False
        if self._suspicion is not None:
            self._suspicion.cancel()

    def close(self) -> None:
        """From the reactor's thread, or when it has ended."""
        self._closed = True
        self._connecting.cancel()
        error = FleetError(Code.LANE_LOST, f"the lane to {self.seat} was closed")
        if self._connection is not None:
            self._connection.end(error)
        self._break(self._connection, error)

    def received(self, connection: Connection, data: Buffer) -> None:
        """A frame of the shard."""
        if connection is not self._connection:
            return
        self._trust()
        try:
            self._take(connection, decode(data, self._hello.max_frame_bytes, self.version))
        except FleetError as error:
            connection.end(error)

    def answered(self, connection: Connection, result: Result) -> None:
        """A result of the shard whose rows came another way."""
        if connection is not self._connection:
            return
        try:
            self._answer(connection, result)
        except FleetError as error:
            connection.end(error)

    def noted(self, frame_id: int, count: int) -> None:
        """A compiled call has read the next ``count`` results of a frame, and written down where they are."""
        self._trust()
        sent = self._sent.get(frame_id)
        if sent is None:
            return
        # All others of the frame were noted, too, so there are as many left.
        assert count <= sent.num_left, f"{count} answers, {sent.num_left} are left"
        sent.num_left -= count
        if sent.sink is not None and sent.on_noted is not None:
            sent.on_noted(count)
        elif not sent.num_left:
            self._forget(frame_id)

    def begin(self, connection: Connection) -> None:
        """Greets over a new connection."""
        if self._closed:
            connection.end(FleetError(Code.LANE_LOST, f"the lane to {self.seat} was closed"))
            return
        self._connection = connection
        what = f"{self.seat} at {self.address} sent no greeting in {_GREETING_S} s"
        self._greeting = self._reactor.call_later(_GREETING_S, lambda: connection.end(FleetError(Code.LANE_LOST, what)))
        connection.open(encode_hello(self._hello))

    async def _keep_connected(self) -> None:
        """On the IO loop."""
        backoff_s = 0.05
        while True:
            connection = self._connect()
            try:
                error = await connection.ended
            except asyncio.CancelledError:
                connection.discard()
                raise
            was_up = self.up and self._connection is connection
            self._reactor.post(self._break, connection, error)
            backoff_s = 0.05 if was_up else min(_MAX_BACKOFF_S, backoff_s * 2)
            await asyncio.sleep(backoff_s)

    def _connect(self) -> Connection:
        """On the IO loop; the reactor's thread greets."""
        connection = self._connect_locally() if self._local else None
        if connection is None:
            limit = self._hello.max_frame_bytes
            connection = GrpcConnection(self, self._io, self._reactor, limit, self._pair, tcp=self._tcp)
        self._reactor.post(self.begin, connection)
        return connection

    def _connect_locally(self) -> Connection | None:
        connected = connect_locally(self.address)
        if connected is None:
            return None
        try:
            return LocalConnection(self, self._reactor, connected, Arena())
        except OSError as error:
            logger.warning("%s is reached over gRPC, as there is no shared memory: %s", self.seat, error)
            connected.close()
            return None

    def _take(self, connection: Connection, frame: object) -> None:
        if not self.up:
            self._greet(connection, frame)
        elif isinstance(frame, Error) and not frame.frame_id:
            raise FleetError(frame.code, f"{self.seat}: {frame.message}")
        elif isinstance(frame, Error):
            self._fail(frame)
        elif isinstance(frame, Result | Filled):
            self._answer(connection, frame)
        elif isinstance(frame, PairAt | Paired | PairedResult | Taken):
            connection.on_pair(frame)
        else:
            raise FleetError(Code.BAD_FRAME, f"{self.seat} sent a {type(frame).__name__} frame")

    def _answer(self, connection: Connection, frame: Result | Filled) -> None:
        sent = self._sent.get(frame.frame_id)
        if sent is None or sent.failed:
            return
        if sent.on_noted is not None:
            self.ignore(frame.frame_id)  # whoever counts some of a frame's answers counts all that follow
        result = connection.answer(frame)
        if result is None or result.rows.count > sent.num_left:
            raise FleetError(Code.BAD_FRAME, f"{self.seat} answered with a misfit {type(frame).__name__} frame")
        sent.num_left -= result.rows.count
        if sent.sink is not None:
            sent.sink(result)
        elif not sent.num_left:
            self._forget(frame.frame_id)

    def _fail(self, error: Error) -> None:
        sent = self._sent.get(error.frame_id)
        if sent is None:
            return
        sent.num_left, sent.failed = 0, True
        self.ignore(error.frame_id)
        if sent.sink is None:
            self._forget(error.frame_id)
        else:
            sent.sink(FleetError(error.code, f"{self.seat}: {error.message}"))

    def _forget(self, frame_id: int) -> None:
        del self._sent[frame_id]
        if self._connection is not None:
            self._connection.ignore(frame_id)
            self._connection.free(frame_id)

    def _greet(self, connection: Connection, hello: object) -> None:
        """The first frame of a connection; the lane is up after it."""
        if isinstance(hello, Error):
            raise FleetError(hello.code, hello.message)
        if not isinstance(hello, Hello):
            raise FleetError(Code.BAD_FRAME, f"{self.seat} greeted with a {type(hello).__name__}")
        if hello.seat != self.seat:
            raise FleetError(Code.LANE_LOST, f"{self.address} is {hello.seat}, not {self.seat}")
        self.version = self._hello.version_with(hello)
        connection.greeted(hello, self.version)
        if self._greeting is not None:
            self._greeting.cancel()
        self.limits = hello
        self.up = True
        self.last_error = None
        logger.info("lane to %s at %s is up", self.seat, self.address)
        self._on_change()

    def _break(self, connection: Connection | None, error: FleetError) -> None:
        if connection is not self._connection:
            return
        if connection is not None:
            connection.end(error)  # lets go of what it has beside what broke
        was_up, self.up, self._connection = self.up, False, None
        close_end(self.end)
        self._forgive()
        if self._greeting is not None:
            self._greeting.cancel()
        if str(error) != str(self.last_error):
            logger.warning("lane to %s at %s is down: %s", self.seat, self.address, error)
        self.last_error = error
        sent, self._sent = self._sent, {}
        if was_up:
            self._on_change()
        lost = FleetError(Code.LANE_LOST, f"the lane to {self.seat} broke: {error}")
        for each in sent.values():
            if each.sink is not None and each.num_left:
                each.sink(lost)
