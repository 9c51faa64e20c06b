"""One answer in the making: the worker's replies turned into events, ended by stop strings or tool calls.

Knows nothing of JSON or HTTP. Tokens are taken one at a time, so events do not depend on how replies were cut.
An event has one kind of text and the tokens that made it; tokens that show nothing travel with the nearest event of
their reply, or alone.
"""

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from ...proto.errors import Code, FleetError
from ...proto.generated import generate_pb2 as pb
from .pieces import Kind, Piece
from .stop_strings import StopStrings


class Reader(Protocol):
    """Tokens to pieces: ``Parser`` for chat, ``PlainText`` for completions."""

    @property
    def num_reasoning_tokens(self) -> int: ...
    @property
    def num_calls(self) -> int: ...
    @property
    def num_finished_calls(self) -> int: ...
    @property
    def num_invalid_calls(self) -> int: ...

    def push(self, token_id: int) -> list[Piece]: ...
    def finish(self) -> list[Piece]: ...


@dataclass
class Event:
    """``kind`` None: tokens without text. The last event of an answer carries ``finish_reason``."""

    kind: Kind | None = None
    text: str = ""
    call: int = 0
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[pb.TokenLogprobs] = field(default_factory=list)
    finish_reason: str | None = None

    def joins(self, piece: Piece) -> bool:
        """Whether the piece simply prolongs this event."""
        return self.kind is None or (self.kind == piece.kind != "call" and self.call == piece.call)

    def add(self, piece: Piece) -> None:
        self.kind, self.text, self.call = piece.kind, self.text + piece.text, piece.call


@dataclass(frozen=True)
class Ending:
    """What ends an answer besides the worker."""

    stop_ids: Container[int] = ()
    stops: tuple[str, ...] = ()
    keep_stop: bool = False
    one_call: bool = False


class Answer:
    """State of one sequence from the first reply to its end."""

    def __init__(self, reader: Reader, ending: Ending, *, wants_logprobs: bool) -> None:
        self.reader = reader
        self.num_tokens = 0
        self.num_cached_tokens = 0
        self.numerics = ""  # of the newest token
        self.num_inexact = 0  # times that it changed
        self.finish_reason: str | None = None
        self._ending = ending
        self._stops = StopStrings(ending.stops, keep=ending.keep_stop)
        self._wants_logprobs = wants_logprobs
        self._open = Event()

    def push(self, reply: pb.GenerateReply) -> list[Event]:
        """The events of one reply; ``finish_reason`` is set when the answer is over, even if the worker would go on."""
        self._check(reply)
        if reply.seat:
            self.num_cached_tokens = reply.num_cached_tokens
        if reply.numerics:
            self.num_inexact += bool(self.numerics)
            self.numerics = reply.numerics
        events: list[Event] = []
        for index, token_id in enumerate(reply.token_ids):
            self._take(token_id, reply.logprobs[index] if self._wants_logprobs else None, events.append)
            if self.finish_reason is not None:
                break
        if self.finish_reason is None and reply.finish_reason:
            self._finish(reply.finish_reason, events.append)
        self._close(events.append)
        return events

    def _check(self, reply: pb.GenerateReply) -> None:
        if self._wants_logprobs and len(reply.logprobs) != len(reply.token_ids):
            counts = f"{len(reply.token_ids)} tokens with {len(reply.logprobs)} log-probabilities"
            raise FleetError(Code.INTERNAL, f"the attention worker sent {counts}")

    def _take(self, token_id: int, logprobs: pb.TokenLogprobs | None, emit: Callable[[Event], None]) -> None:
        self.num_tokens += 1
        pieces = [] if token_id in self._ending.stop_ids else list(self._shown(self.reader.push(token_id)))
        if pieces and not self._open.joins(pieces[0]):
            self._close(emit)
        self._open.token_ids.append(token_id)
        if logprobs is not None:
            self._open.logprobs.append(logprobs)
        self._add(pieces, emit)
        if self._stops.matched is not None or (self._ending.one_call and self.reader.num_finished_calls):
            self._finish("stop", emit)

    def _shown(self, pieces: list[Piece]) -> Iterator[Piece]:
        """Content passes the stop strings; what they held comes out before a piece of another kind."""
        for piece in pieces:
            if self._stops.matched is not None:
                return
            held = self._stops.flush() if piece.kind != "content" else ""
            if held:
                yield Piece("content", held)
            text = self._stops.push(piece.text) if piece.kind == "content" else piece.text
            if text:
                yield Piece(piece.kind, text, piece.call)

    def _add(self, pieces: list[Piece], emit: Callable[[Event], None]) -> None:
        for piece in pieces:
            if not self._open.joins(piece):
                self._close(emit)
            self._open.add(piece)

    def _finish(self, reason: str, emit: Callable[[Event], None]) -> None:
        pieces = [] if self._stops.matched is not None else list(self._shown(self.reader.finish()))
        held = "" if self._stops.matched is not None else self._stops.flush()
        self._add([*pieces, *([Piece("content", held)] if held else [])], emit)
        self.finish_reason = self._with_calls if reason == "stop" else reason
        self._open.finish_reason = self.finish_reason
        self._close(emit)

    @property
    def _with_calls(self) -> str:
        """How an answer ended that came to its end: a client goes by this, so a call that it cannot run is no "stop"."""
        if self.reader.num_calls:
            return "tool_calls"
        return "invalid_tool_call" if self.reader.num_invalid_calls else "stop"

    def _close(self, emit: Callable[[Event], None]) -> None:
        if self._open.kind is not None or self._open.token_ids or self._open.finish_reason:
            emit(self._open)
            self._open = Event()
