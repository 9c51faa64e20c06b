"""One tool call as the model writes it: a header, then arguments.

Knows nothing of tokens. A call comes out as soon as its tool is known: after the header, or else at the end of the arguments,
held back until then. A call whose tool nothing tells comes out as content, header and arguments as they were written.
"""

from .call_header import Caller, Tools, is_name, read_header
from .pieces import Piece


class CallReader:
    """``number``: of the call within its answer, if it becomes one."""

    def __init__(self, tools: Tools, number: int, header: str = "") -> None:
        self.is_made = False
        self._tools = tools
        self._number = number
        self._header = header
        self._caller: Caller | None = None  # None: the header is not over
        self._buffered: list[str] = []  # arguments of a call whose tool is not known yet
        self._has_arguments = False
        self._held = ""  # white space that may end the arguments

    def push(self, text: str) -> list[Piece]:
        """Arguments come out without the white space around them."""
        if self._caller is None:
            self._header += text
            return []
        text = self._held + (text if self._has_arguments else text.lstrip())
        solid = text.rstrip()
        self._held = text[len(solid) :]
        if not solid:
            return []
        self._has_arguments = True
        if self.is_made:
            return [Piece("arguments", solid, self._number)]
        self._buffered.append(solid)
        return []

    @property
    def lacks_marker(self) -> bool:
        """Nothing has marked where the arguments begin, and they have."""
        return self._caller is None and "{" in self._header

    def open_arguments(self) -> list[Piece]:
        if self._caller is not None:
            return []
        header, brace, _ = self._header.partition("{")
        is_whole = not brace or (
            not is_name(header, self._tools) and read_header(self._header, self._tools).is_declared_name
        )
        return self._end_header() if is_whole else self._split_header()

    def end(self) -> list[Piece]:
        """A marker ends the call."""
        pieces: list[Piece] = []
        if self.lacks_marker:
            pieces = self._split_header()
        elif self._caller is None and is_name(self._header, self._tools):
            pieces = self._end_header()
        if self.is_made:
            return pieces if self._has_arguments else [*pieces, Piece("arguments", "{}", self._number)]
        return self._by_arguments("".join(self._buffered) or "{}")

    def cut(self) -> list[Piece]:
        """The answer ends within the call."""
        pieces = self._split_header() if self.lacks_marker else []
        return pieces if self.is_made else self._by_arguments("".join(self._buffered))

    def _end_header(self) -> list[Piece]:
        self._caller = read_header(self._header, self._tools)
        return [] if self._caller.name is None else [self._make(self._caller.name)]

    def _split_header(self) -> list[Piece]:
        """Nothing marked where the arguments begin: a brace does."""
        self._header, brace, rest = self._header.partition("{")
        return self._end_header() + self.push(brace + rest)

    def _by_arguments(self, arguments: str) -> list[Piece]:
        name = self._caller.by_arguments(arguments) if self._caller is not None else None
        if name is not None:
            return [self._make(name), Piece("arguments", arguments, self._number)]
        text = self._header.strip() + "".join(self._buffered)
        return [Piece("content", text)] if text else []

    def _make(self, name: str) -> Piece:
        self.is_made = True
        return Piece("call", name, self._number)
