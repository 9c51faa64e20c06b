"""Text that knows which of its characters the chat template wrote; all others are a client's.

Knows nothing of Jinja or of tokens. 1. What the template wrote is ``written`` text; a client's strings stay plain ``str``.
2. Joining, cutting and formatting keep track of every character. 3. An operation that is not covered here gives a plain
``str``, so that text of the template counts as a client's, never the other way round.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any, Self, SupportsIndex

from markupsafe import Markup

_TEMPLATE, _CLIENT = "T", "-"
_WRITTEN_RUN = re.compile(f"{_TEMPLATE}+")
_CONVERSION = re.compile(r"%(?:\((?P<key>[^()]*)\))?[-#0 +]*\d*(?:\.\d+)?[hlL]?(?P<kind>[diouxXeEfFgGcrsa%])")


class TemplateText(str):
    """``mask`` has a character for each of the text's: who wrote it."""

    __slots__ = ("_mask",)
    _mask: str

    def __new__(cls, text: str, mask: str) -> Self:
        assert len(text) == len(mask), f"{len(text)} characters, a mask of {len(mask)}"
        made = super().__new__(cls, text)
        made._mask = mask
        return made

    def __str__(self) -> str:
        return self

    def __iter__(self) -> Iterator[str]:
        return (self._part(index, index + 1) for index in range(len(self)))

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        return _text(super().__getitem__(key), self._mask[key])

    def __add__(self, other: Any) -> Any:
        return joined((self, other)) if _is_text(other) else NotImplemented

    def __radd__(self, other: Any) -> Any:
        return joined((other, self)) if _is_text(other) else NotImplemented

    def __mul__(self, count: SupportsIndex) -> str:
        return _text(super().__mul__(count), self._mask * count)

    __rmul__ = __mul__

    def __mod__(self, values: Any) -> str:
        text = super().__mod__(values)
        return of_pieces(text, _conversions(self, values)) if is_written(self) else text

    def join(self, parts: Iterable[str], /) -> str:
        parts = list(parts)
        super().join(parts)  # raises what is to be raised
        return joined(part for index, item in enumerate(parts) for part in ((self, item) if index else (item,)))

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> str:
        """Where a client's text says what goes, it could bring pieces of the template together: then nothing is kept."""
        if not old or (_TEMPLATE in self._mask and not is_written(old)):
            return super().replace(old, new, count)
        return joined(part for index, item in enumerate(self.split(old, count)) for part in (new, item)[not index :])

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._parts(super().split(sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._parts(super().rsplit(sep, maxsplit), sep)

    def splitlines(self, keepends: bool = False) -> list[str]:
        whole = self._parts(super().splitlines(keepends=True), "")
        lines = super().splitlines(keepends)
        return [line[: len(shown)] for line, shown in zip(whole, lines, strict=True)]

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        head, middle, tail = self._parts(list(super().partition(sep)), "")
        return head, middle, tail

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        head, middle, tail = self._parts(list(super().rpartition(sep)), "")
        return head, middle, tail

    def strip(self, chars: str | None = None, /) -> str:
        start = len(self) - len(super().lstrip(chars))
        return self._part(start, start + len(super().strip(chars)))

    def lstrip(self, chars: str | None = None, /) -> str:
        return self._part(len(self) - len(super().lstrip(chars)), len(self))

    def rstrip(self, chars: str | None = None, /) -> str:
        return self._part(0, len(super().rstrip(chars)))

    def removeprefix(self, prefix: str, /) -> str:
        return self._part(len(self) - len(super().removeprefix(prefix)), len(self))

    def removesuffix(self, suffix: str, /) -> str:
        return self._part(0, len(super().removesuffix(suffix)))

    def lower(self) -> str:
        return self._recased(super().lower())

    def upper(self) -> str:
        return self._recased(super().upper())

    def casefold(self) -> str:
        return self._recased(super().casefold())

    def capitalize(self) -> str:
        return self._recased(super().capitalize())

    def swapcase(self) -> str:
        return self._recased(super().swapcase())

    def title(self) -> str:
        return self._recased(super().title())

    def center(self, width: SupportsIndex, /, *fill: str) -> str:
        return _text(super().center(width, *fill), self._mask.center(width, _filler(fill)))

    def ljust(self, width: SupportsIndex, /, *fill: str) -> str:
        return _text(super().ljust(width, *fill), self._mask.ljust(width, _filler(fill)))

    def rjust(self, width: SupportsIndex, /, *fill: str) -> str:
        return _text(super().rjust(width, *fill), self._mask.rjust(width, _filler(fill)))

    def _part(self, start: int, stop: int) -> str:
        return _text(super().__getitem__(slice(start, stop)), self._mask[start:stop])

    def _parts(self, texts: list[str], between: str | None) -> list[str]:
        """Where these pieces of it lie: in a row with ``between`` between them, None is white space."""
        parts, at = [], 0
        for text in texts:
            at = self.index(text, at) if between is None else at
            parts.append(self._part(at, at + len(text)))
            at += len(text) + len(between or "")
        return parts

    def _recased(self, text: str) -> str:
        """No character becomes fewer in another case, so equal lengths mean equal places."""
        if len(text) == len(self):
            return _text(text, self._mask)
        return written(text) if is_written(self) else text


# Python's and Jinja's errors name the type of a value, and this one is a string to whoever reads them.
TemplateText.__name__, TemplateText.__module__ = str.__name__, str.__module__


class _SafeText(Markup):
    """Printed it is the text that it was made of; in every other operation it is plain markup."""

    _text: str | None = None

    def __str__(self) -> str:
        return super().__str__() if self._text is None else self._text


def safe(text: TemplateText) -> Markup:
    made = _SafeText(text)
    made._text = text
    return made


def written(text: str) -> TemplateText:
    """Text that the template wrote, all of it."""
    return TemplateText(text, _TEMPLATE * len(text))


def tracked(value: Any) -> Any:
    """A client's string as one whose operations keep what the template puts into it; anything else as it is."""
    return TemplateText(value, _CLIENT * len(value)) if type(value) is str else value


def is_written(text: str) -> bool:
    return isinstance(text, TemplateText) and _CLIENT not in text._mask


def written_spans(text: str) -> list[tuple[int, int]]:
    """The longest stretches that hold nothing of a client's, in order."""
    return [run.span() for run in _WRITTEN_RUN.finditer(text._mask)] if isinstance(text, TemplateText) else []


def joined(parts: Iterable[str]) -> str:
    parts = list(parts)
    text = "".join(parts)
    if not any(isinstance(part, TemplateText) for part in parts):
        return text
    return _text(text, "".join(map(_mask_of, parts)))


def of_pieces(text: str, pieces: Iterable[str]) -> str:
    """``text`` as the pieces that it was made of, if they do make it."""
    whole = joined(pieces)
    return whole if whole == text else text


def _text(text: str, mask: str) -> str:
    return TemplateText(text, mask) if _TEMPLATE in mask else str.__str__(text)


def _mask_of(text: str) -> str:
    return text._mask if isinstance(text, TemplateText) else _CLIENT * len(text)


def _filler(fill: tuple[str, ...]) -> str:
    return _TEMPLATE if all(map(is_written, fill)) else _CLIENT


def _is_text(value: Any) -> bool:
    """Markup joins with text in its own way."""
    return isinstance(value, str) and not isinstance(value, Markup)


def _conversions(template: TemplateText, values: Any) -> Iterator[str]:
    """The pieces of ``template % values``, which has worked; widths that are values themselves (``*``) are not read."""
    in_order = iter(values if isinstance(values, tuple) else (values,))
    end = 0
    for found in _CONVERSION.finditer(template):
        yield template[end : found.start()]
        end = found.end()
        if found["kind"] == "%":
            yield written("%")
        elif found["key"] is not None:
            yield _converted("%" + found[0].partition(")")[2], values[found["key"]])
        else:
            yield _converted(found[0], next(in_order, ""))
    yield template[end:]


def _converted(conversion: str, value: Any) -> str:
    return str(value) if conversion == "%s" else str.__mod__(conversion, (value,))
