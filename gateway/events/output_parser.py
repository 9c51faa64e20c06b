"""The model's tokens, told apart: reasoning, content and tool calls.

Knows nothing of HTTP, ids of calls or stop strings. It works on token ids, one at a time, so that text which merely looks
like a marker is text, no marker is ever shown, and a stream says the same as a whole answer however it was cut.

    start → reasoning → content → section → after

1. ``<think>`` opens reasoning; ``</think>`` or a tool section ends it. An answer without ``<think>`` is content, but if the
   prompt has opened reasoning (``thinks``), the answer begins with it.
2. In a section each call is a header (``functions.name:0``) and arguments (``call_reader.py``).
3. All other text is content, in sections and after them. Only white space that stands alone beside a marker is dropped.
"""

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from .call_header import Tools, is_name
from .call_reader import CallReader
from .pieces import Piece
from .section_names import BEGINS, ENDS, Tail, after_end


class Decoder(Protocol):
    """Bytes of tokens to text, holding back what is not yet a whole character."""

    def push(self, token_id: int) -> str: ...
    def flush(self) -> str: ...


@dataclass(frozen=True)
class Markers:
    """Token ids of the format's markers; None where the vocabulary lacks one."""

    think: int | None = None
    think_end: int | None = None
    call: int | None = None
    arguments: int | None = None
    call_end: int | None = None
    sections: tuple[int, ...] = ()
    section_ends: tuple[int, ...] = ()

    @staticmethod
    def from_special(special: Mapping[str, int]) -> "Markers":
        return Markers(
            think=special.get("<think>"),
            think_end=special.get("</think>"),
            call=special.get("<|tool_call_begin|>"),
            arguments=special.get("<|tool_call_argument_begin|>"),
            call_end=special.get("<|tool_call_end|>"),
            sections=tuple(special[name] for name in BEGINS if name in special),
            section_ends=tuple(special[name] for name in ENDS if name in special),
        )


# Characters of text in a section beyond which it is no header that lacks its marker.
_LONGEST_HEADER = 128


class _State(enum.Enum):
    START = enum.auto()
    REASONING = enum.auto()
    CONTENT = enum.auto()
    SECTION = enum.auto()
    AFTER = enum.auto()


class Parser:
    """One answer. ``tools`` maps declared names to parameter schemas; without any, what is in sections is content."""

    def __init__(
        self,
        markers: Markers,
        is_special: Callable[[int], bool],
        decoder: Decoder,
        tools: Tools | None = None,
        *,
        thinks: bool = False,
    ) -> None:
        self.num_reasoning_tokens = 0
        self.num_calls = 0
        self.num_finished_calls = 0
        self.num_invalid_calls = 0  # whose tool nothing tells
        self._is_special = is_special
        self._decoder = decoder
        self._tools = tools or {}
        self._state = _State.REASONING if thinks else _State.START
        self._held = ""  # white space before text, or text between calls
        self._tail = Tail()
        self._call: CallReader | None = None
        # Of functions, not of methods: a parser that refers to itself stays until a collection of garbage.
        self._on_marker: dict[int | None, Callable[[Parser], list[Piece]]] = {
            markers.call: Parser._open_call,
            markers.arguments: Parser._open_arguments,
            markers.call_end: Parser._end_call,
            markers.think: Parser._open_reasoning,
            markers.think_end: Parser._end_reasoning,
            **dict.fromkeys(markers.sections, Parser._open_section),
            **dict.fromkeys(markers.section_ends, Parser._end_section),
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
        """The answer is over, perhaps in the middle of something: what is held back comes out."""
        pieces = self._text(self._decoder.flush())
        pieces += self._leave_call(self._call.cut()) if self._call is not None else self._leave_text()
        self._state = _State.AFTER
        return pieces

    def _text(self, text: str) -> list[Piece]:
        if not text:
            return []
        if self._call is not None:
            return self._call.push(text)
        if self._state is _State.SECTION:
            return self._text_in_section(text)
        return self._shown(self._tail.push(text))

    def _text_in_section(self, text: str) -> list[Piece]:
        """A header without its marker, or noise: which it is says the next marker, or its length."""
        self._held += text
        rest = after_end(self._held)
        if rest is not None:
            self._held, self._state = "", _State.AFTER
            return self._text(rest)
        return self._leave_section() if len(self._held) > _LONGEST_HEADER else []

    def _leave_section(self) -> list[Piece]:
        held, self._held, self._state = self._held, "", _State.AFTER
        return self._text(held)

    def _shown(self, text: str) -> list[Piece]:
        """White space before ``<think>`` or after a section is noise, before anything else it is content."""
        if self._state is _State.REASONING:
            return [Piece("reasoning", text)] if text else []
        text, self._held = self._held + text, ""
        rest = after_end(text) if self._state is _State.AFTER else None
        if rest is not None:
            return self._shown(rest)
        if self._state is not _State.CONTENT and (not text.strip() or self._begins_an_end(text)):
            self._held = text
            return []
        self._state = _State.CONTENT
        return [Piece("content", text)] if text else []

    def _begins_an_end(self, text: str) -> bool:
        return self._state is _State.AFTER and any(name.startswith(text.lstrip()) for name in ENDS)

    def _release(self, *, is_before_call: bool = False) -> list[Piece]:
        """A marker follows: text that was held back comes out, but for white space that stands alone."""
        if self._call is not None:
            return []
        pieces = self._leave_section() if self._state is _State.SECTION else []
        pieces += self._shown(self._tail.before_call() if is_before_call else self._tail.flush())
        if self._state is _State.AFTER:
            held, self._held = self._held, ""
            pieces += [Piece("content", held)] if held.strip() else []
        return pieces

    def _leave_text(self, *, is_before_call: bool = False) -> list[Piece]:
        """White space held since the start is content after all."""
        pieces = self._release(is_before_call=is_before_call)
        held, self._held = self._held, ""
        return [*pieces, Piece("content", held)] if held else pieces

    def _open_reasoning(self) -> list[Piece]:
        pieces = self._release()
        if self._call is None:
            self._state, self._held = _State.REASONING, ""
        return pieces

    def _end_reasoning(self) -> list[Piece]:
        if self._state is _State.SECTION:
            return []
        pieces = self._release()
        if self._state is _State.REASONING:
            self._state = _State.CONTENT
        return pieces

    def _open_section(self) -> list[Piece]:
        if self._call is not None and not self._call.lacks_marker:
            return []
        pieces = self._end_call() if self._call is not None else self._leave_text(is_before_call=True)
        self._state = _State.SECTION if self._tools else _State.AFTER
        return pieces

    def _open_call(self) -> list[Piece]:
        pieces = self._end_call() if self._call is not None else self._leave_text(is_before_call=True)
        self._state = _State.SECTION if self._tools else _State.AFTER
        self._call = CallReader(self._tools, self.num_calls) if self._tools else None
        return pieces

    def _open_arguments(self) -> list[Piece]:
        if self._state is not _State.SECTION:
            return self._orphan()
        self._call = self._call or self._call_without_marker()
        return self._counted(self._call.open_arguments())

    def _end_call(self) -> list[Piece]:
        if self._state is not _State.SECTION:
            return self._orphan()
        if self._call is None:
            header, brace, _ = self._held.partition("{")
            if not (brace and is_name(header, self._tools)):
                pieces, self._state = self._release(), _State.SECTION
                return pieces
            self._call = self._call_without_marker()
        return self._leave_call(self._call.end())

    def _end_section(self) -> list[Piece]:
        pieces = self._leave_call(self._call.end()) if self._call is not None else []
        return pieces + self._orphan()

    def _orphan(self) -> list[Piece]:
        """Whatever the marker was to end has not begun, or is over."""
        pieces = self._leave_text()
        if self._state is not _State.REASONING:
            self._state = _State.AFTER
        return pieces

    def _call_without_marker(self) -> CallReader:
        """Nothing marked its beginning: the text since the last marker is its header."""
        header, self._held = self._held, ""
        return CallReader(self._tools, self.num_calls, header)

    def _leave_call(self, pieces: list[Piece]) -> list[Piece]:
        assert self._call is not None
        self._counted(pieces)
        self.num_finished_calls += self._call.is_made
        self.num_invalid_calls += not self._call.is_made
        self._call = None
        return pieces

    def _counted(self, pieces: list[Piece]) -> list[Piece]:
        self.num_calls += sum(piece.kind == "call" for piece in pieces)
        return pieces
