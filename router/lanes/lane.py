"""The worker's end of one lane: a long-lived connection to one expert shard, opened again whenever it breaks.

Knows nothing of what routes mean: it carries frames and hands answers to whoever posted. Everything here belongs to the
reactor's thread, but for the connecting, which is a task on the IO loop.
1. A local socket where the shard is on this machine and offers one, else a gRPC stream; 2. HELLO both ways; 3. ``post``
frames, each with a sink for its answers, and ``drop`` each when its answers are no longer needed; 4. when the connection
breaks, every waiting sink gets LANE_LOST and the lane is down until the next HELLO. A shard's answer that does not fit what it was
asked (``sent_frames.py``) ends the connection like a broken one, at once and whatever else of it is on its way.
"""

import asyncio
import logging
from collections.abc import Callable

from ...kernels.native_lanes import WorkerEnd, close_end
from ...proto.codec import Error, Hello, Result, ResultShm, decode, encode_hello
from ...proto.errors import Code, FleetError
from ...proto.frame_prefix import Buffer
from ...proto.group_frames import AckPg, DispatchPg, GroupOffer, ResultPg
from ...transport.io_thread import IoThread
from ...transport.local_lane import connect_locally
from ...transport.pair_group import PairSettings
from ...transport.reactor import Reactor, Timer
from ...transport.shared_memory import Arena
from .connection import Connection
from .frame_in_flight import FrameInFlight, FrameOwner
from .grpc_connection import GrpcConnection
from .latency import ExpertCost, LatencyTracker
from .local_connection import LocalConnection
from .sent_frames import SentFrames

logger = logging.getLogger(__name__)

_MAX_BACKOFF_S = 1.0
_GREETING_S = 5.0
_SUSPICION_S = 1.0


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
        self.pace = LatencyTracker()
        self.expert_pace = ExpertCost()
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
        self._frames = SentFrames()  # of the connection
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

    def post(self, frame: FrameInFlight) -> None:
        """Sends the frame; its owner gets RESULT pieces, or one FleetError."""
        assert frame.wire is not None, "it is to be sent"
        owner = frame.owner
        if not self.up or self._connection is None:
            _tell(frame, owner, FleetError(Code.LANE_LOST, f"the lane to {self.seat} is down"))
            return
        self._frames.open[frame.frame_id] = frame
        try:
            self._connection.post(frame.wire, frame.row_ids)
        except FleetError as error:
            self._frames.end(frame.frame_id)
            _tell(frame, owner, error)

    def sent(self, frame: FrameInFlight) -> None:
        """As ``post``, for a frame that a compiled call has sent by this lane's ``end``."""
        assert self._connection is not None, "its end is open"
        self._frames.open[frame.frame_id] = frame
        self._connection.sent(frame)

    def ignore(self, frame: FrameInFlight) -> None:
        """Compiled calls write down no further answers; the memory of those that came stays as it is."""
        if frame.frame_id in self._frames.open and self._connection is not None:
            frame.all_counted = False
            self._connection.ignore(frame.frame_id)

    def drop(self, frame: FrameInFlight) -> None:
        """The dispatch needs none of the frame's answers, neither those that came nor those to come."""
        frame_id = frame.frame_id
        frame.let_go()
        if frame_id not in self._frames.open or self._connection is None:
            return
        if frame.num_left:
            self.ignore(frame)
            if self._connection.cancel(frame_id):
                return
            self._frames.give_up(frame_id)
        elif frame.failed and not self._connection.keeps_order:
            self._frames.give_up(frame_id)
        else:
            self._frames.end(frame_id)
        self._free(frame_id)

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
            self._break(connection, error)

    def answered(self, connection: Connection, result: Result) -> None:
        """A result of the shard whose rows came another way."""
        if connection is not self._connection:
            return
        try:
            self._answer(connection, result)
        except FleetError as error:
            self._break(connection, error)

    def noted(self, frame_id: int, count: int) -> None:
        """A compiled call has read the next ``count`` results of a frame, and written down where they are."""
        self._trust()
        frame = self._frames.open.get(frame_id)
        if frame is None:
            return
        # All others of the frame were noted, too, so there are as many left.
        assert count <= frame.num_left, f"{count} answers, {frame.num_left} are left"
        frame.num_answered += count
        if frame.owner is not None:
            frame.owner.on_rows_written(frame, count)
        elif not frame.num_left:
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
            self._fail(connection, frame)
        elif isinstance(frame, Result | ResultShm):
            self._answer(connection, frame)
        elif isinstance(frame, GroupOffer | DispatchPg | ResultPg | AckPg):
            connection.on_pair(frame)
        else:
            raise FleetError(Code.BAD_FRAME, f"{self.seat} sent a {type(frame).__name__} frame")

    def _answer(self, connection: Connection, answer: Result | ResultShm) -> None:
        frame = self._find(answer.frame_id, type(answer).__name__)
        if frame is None:
            return
        if frame.places:
            connection.ignore(answer.frame_id)  # Python counts all answers that follow one which it has counted
        result = connection.answer(answer)
        if result is None or (frame.failed and connection.keeps_order) or not frame.take(result):
            what = f"first {answer.first_route}, of {answer.num_routes}" if result is None else _shown(result)
            raise self._fault(f"frame {answer.frame_id}, {frame}, with a misfit {type(answer).__name__}: {what}")
        if frame.owner is None:
            if frame.num_answered == frame.num_routes:
                self._forget(answer.frame_id)
        elif not frame.failed:
            frame.owner.on_answer(frame, result)

    def _fail(self, connection: Connection, error: Error) -> None:
        frame = self._find(error.frame_id, "Error")
        if frame is None:
            return
        told = FleetError(error.code, f"{self.seat}: {error.message}")
        if not frame.num_left:
            raise self._fault(f"frame {error.frame_id}, {frame}, with an error after that: {error.code.name} {told}")
        if frame.owner is not None and error.code is Code.CANCELLED:
            raise self._fault(f"frame {error.frame_id} with {error.code.name}, which nobody has cancelled")
        frame.failed = True
        connection.ignore(error.frame_id)
        if frame.owner is not None:
            frame.owner.on_answer(frame, told)
        elif connection.keeps_order:
            self._forget(error.frame_id)

    def _find(self, frame_id: int, kind: str) -> FrameInFlight | None:
        """The frame that an answer belongs to; None where that cannot be told. Raises FleetError where there is none."""
        frame = self._frames[frame_id]
        if frame is None and not self._frames.is_too_old(frame_id):
            raise self._fault(f"frame {frame_id} with a {kind}, but was not asked it, or has said all of it before")
        return frame

    def _fault(self, what: str) -> FleetError:
        return FleetError(Code.BAD_FRAME, f"{self.seat} answered {what}")

    def _forget(self, frame_id: int) -> None:
        self._frames.end(frame_id)
        self._free(frame_id)

    def _free(self, frame_id: int) -> None:
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
        was_up, self.up, self._connection = self.up, False, None
        if connection is not None:
            connection.end(error)  # lets go of what it has beside what broke
        close_end(self.end)
        self._forgive()
        if self._greeting is not None:
            self._greeting.cancel()
        if str(error) != str(self.last_error):
            logger.warning("lane to %s at %s is down: %s", self.seat, self.address, error)
        self.last_error = error
        frames, self._frames = self._frames, SentFrames()
        if was_up:
            self._on_change()
        lost = FleetError(Code.LANE_LOST, f"the lane to {self.seat} broke: {error}")
        for each in frames.open.values():
            if each.owner is not None and each.num_left:
                each.owner.on_answer(each, lost)


def _tell(frame: FrameInFlight, owner: FrameOwner | None, error: FleetError) -> None:
    assert owner is not None, "a dispatch sends it"
    owner.on_answer(frame, error)


def _shown(result: Result) -> str:
    rows, last = result.rows, result.first_route + result.rows.count
    return f"routes {result.first_route} to {last} of {result.num_routes}, rows {rows.width} wide, {rows.dtype}"
