"""The model's tokens, told apart: reasoning, content and tool calls.

Knows nothing of HTTP, ids of calls or stop strings. It works on token ids, one at a time, so that text which merely looks
like a marker is text, no marker is ever shown, and a stream says the same as a whole answer however it was cut.

    start → reasoning → content → section → header → arguments → section → after

1. ``<think>`` opens reasoning; ``</think>`` or a tool section ends it. An answer without ``<think>`` is content.
2. In a section each call is a header (``functions.name:0``) and arguments; what lies between calls is noise.
3. After the section nothing is shown; a further section may open.
"""

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from .call_header import Caller, name_of

Kind = Literal["reasoning", "content", "call", "arguments"]


class Decoder(Protocol):
    """Bytes of tokens to text, holding back what is not yet a whole character."""

    def push(self, token_id: int) -> str: ...
    def flush(self) -> str: ...


@dataclass(frozen=True)
class Markers:
    """Token ids of the format's markers; None where the vocabulary lacks one."""

    think: int | None = None
    think_end: int | None = None
    section: int | None = None
    section_end: int | None = None
    call: int | None = None
    arguments: int | None = None
    call_end: int | None = None

    @staticmethod
    def from_special(special: Mapping[str, int]) -> "Markers":
        return Markers(
            think=special.get("<think>"),
            think_end=special.get("</think>"),
            section=special.get("<|tool_calls_section_begin|>"),
            section_end=special.get("<|tool_calls_section_end|>"),
            call=special.get("<|tool_call_begin|>"),
            arguments=special.get("<|tool_call_argument_begin|>"),
            call_end=special.get("<|tool_call_end|>"),
        )


@dataclass(frozen=True)
class Piece:
    """Some text of one kind; of kind "call" it is the tool's name. Calls are numbered from 0."""

    kind: Kind
    text: str
    call: int = 0


class _State(enum.Enum):
    START = enum.auto()
    REASONING = enum.auto()
    CONTENT = enum.auto()
    SECTION = enum.auto()
    HEADER = enum.auto()
    ARGUMENTS = enum.auto()
    AFTER = enum.auto()


class Parser:
    """One answer. ``tools`` maps declared names to parameter schemas; without any, sections are dropped unread."""

    def __init__(
        self,
        markers: Markers,
        is_special: Callable[[int], bool],
        decoder: Decoder,
        tools: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.num_reasoning_tokens = 0
        self.num_calls = 0
        self.num_finished_calls = 0
        self._is_special = is_special
        self._decoder = decoder
        self._tools = tools or {}
        self._state = _State.START
        self._held = ""  # white space before the first text, a header, or white space that may end the arguments
        self._caller: Caller | None = None
        self._has_arguments = False
        self._buffered: list[str] = []  # arguments of a call whose tool is not known yet
        # Of functions, not of methods: a parser that refers to itself stays until a collection of garbage.
        self._on_marker: dict[int | None, Callable[[Parser], list[Piece]]] = {
            markers.section: Parser._open_section,
            markers.call: Parser._open_call,
            markers.arguments: Parser._open_arguments,
            markers.call_end: Parser._end_call,
            markers.section_end: Parser._end_section,
            markers.think: Parser._open_reasoning,
            markers.think_end: Parser._end_reasoning,
        }
        self._on_marker.pop(None, None)

    def push(self, token_id: int) -> list[Piece]:
        marker = self._on_marker.get(token_id)
        if marker is not None:
            return self._text(self._decoder.flush()) + marker(self)
        if self._state is _State.REASONING:
            self.num_reasoning_tokens += 1
        if self._is_special(token_id):
            return []
        return self._text(self._decoder.push(token_id))

    def finish(self) -> list[Piece]:
        """The answer is over, perhaps in the middle of something: what is held back comes out, if it can be shown."""
        pieces = self._text(self._decoder.flush())
        if self._state is _State.START and self._held:
            pieces.append(Piece("content", self._held))
        self._state, self._held = _State.AFTER, ""
        return pieces

    def _text(self, text: str) -> list[Piece]:
        if not text:
            return []
        match self._state:
            case _State.START:
                return self._first_text(text)
            case _State.REASONING:
                return [Piece("reasoning", text)]
            case _State.CONTENT:
                return [Piece("content", text)]
            case _State.HEADER:
                self._held += text
            case _State.ARGUMENTS:
                return self._argument_text(text)
        return []

    def _first_text(self, text: str) -> list[Piece]:
        """White space before ``<think>`` is noise, before anything else it is content."""
        self._held += text
        if self._held.isspace():
            return []
        held, self._held, self._state = self._held, "", _State.CONTENT
        return [Piece("content", held)]

    def _argument_text(self, text: str) -> list[Piece]:
        """Arguments without the white space around them."""
        if self._caller is None:
            return []
        text = self._held + (text if self._has_arguments else text.lstrip())
        solid = text.rstrip()
        self._held = text[len(solid) :]
        if not solid:
            return []
        self._has_arguments = True
        if self._caller.name is None:
            self._buffered.append(solid)
            return []
        return [Piece("arguments", solid, self.num_calls - 1)]

    def _open_reasoning(self) -> list[Piece]:
        if self._state in (_State.START, _State.CONTENT):
            self._state, self._held = _State.REASONING, ""
        return []

    def _end_reasoning(self) -> list[Piece]:
        if self._state is _State.REASONING:
            self._state = _State.CONTENT
        return []

    def _open_section(self) -> list[Piece]:
        pieces = self._leave_text()
        if self._state not in (_State.HEADER, _State.ARGUMENTS):
            self._state = _State.SECTION
        return pieces

    def _open_call(self) -> list[Piece]:
        pieces = self._leave_text() + (self._end_call() if self._state is _State.ARGUMENTS else [])
        self._state, self._held = _State.HEADER, ""
        return pieces

    def _leave_text(self) -> list[Piece]:
        """White space held since the start is content after all."""
        held, started = self._held, self._state is _State.START
        self._held = "" if started else self._held
        return [Piece("content", held)] if started and held else []

    def _open_arguments(self) -> list[Piece]:
        if self._state is not _State.HEADER:
            return []
        self._caller = name_of(self._held, self._tools)
        self._state, self._held, self._has_arguments, self._buffered = _State.ARGUMENTS, "", False, []
        if self._caller is None or self._caller.name is None:
            return []
        return [self._new_call(self._caller.name)]

    def _end_call(self) -> list[Piece]:
        pieces: list[Piece] = []
        if self._state is _State.ARGUMENTS and self._caller is not None:
            if self._caller.name is None:
                pieces = self._call_by_arguments()
            elif not self._has_arguments:
                pieces = [Piece("arguments", "{}", self.num_calls - 1)]
            self.num_finished_calls += self._caller.name is not None or bool(pieces)
        if self._state in (_State.HEADER, _State.ARGUMENTS):
            self._state, self._held, self._caller = _State.SECTION, "", None
        return pieces

    def _end_section(self) -> list[Piece]:
        pieces = self._leave_text() + self._end_call()
        if self._state is _State.SECTION:
            self._state = _State.AFTER
        return pieces

    def _call_by_arguments(self) -> list[Piece]:
        """A header without a name: the one tool that these arguments fit, if there is exactly one."""
        assert self._caller is not None
        arguments = "".join(self._buffered) or "{}"
        name = self._caller.by_arguments(arguments)
        return [] if name is None else [self._new_call(name), Piece("arguments", arguments, self.num_calls - 1)]

    def _new_call(self, name: str) -> Piece:
        self.num_calls += 1
        return Piece("call", name, self.num_calls - 1)
