"""What an answer is told apart into.

Knows nothing of tokens.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["reasoning", "content", "call", "arguments"]


@dataclass(frozen=True)
class Piece:
    """Some text of one kind; of kind "call" it is the tool's name. Calls are numbered from 0."""

    kind: Kind
    text: str
    call: int = 0
