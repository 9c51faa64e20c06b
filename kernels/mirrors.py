"""Structures that Python shares with the compiled library, held against what the library says of its own when it is loaded.

Knows nothing of what they are for. Each is written twice, as a ``ctypes.Structure`` and in C++ (``cpp/lanes.h``); a field that lies
elsewhere at the other side would be written over another one.
"""

import ctypes
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

from .errors import ForeignLibraryError

_KINDS = {**dict.fromkeys("bhilq", "i"), **dict.fromkeys("BHILQ", "u"), **dict.fromkeys("fd", "f"), "P": "p"}
_WORDS = {"i": "signed", "u": "unsigned", "f": "floating-point", "p": "pointer", "s": "structure"}


class Place(NamedTuple):
    """Where a field lies in its structure; a structure's own place is its name and size."""

    name: str  # structure.field
    kind: str  # as in cpp/layouts.cpp; of an array its elements'
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.name}, {_WORDS.get(self.kind, self.kind)}, {self.size} bytes from {self.offset} on"


def check_mirrors(library: ctypes.CDLL, mirrors: Iterable[type[ctypes.Structure]]) -> None:
    """Raises ForeignLibraryError naming the first structure and field that is not the same at both sides, AttributeError for a library
    that says nothing."""
    theirs = _told_by(library)
    ours = {mirror.__name__: _places_of(mirror) for mirror in mirrors}
    for name in {**ours, **theirs}:
        _compare(library._name, name, ours.get(name, []), theirs.get(name, []))


def _compare(path: str, structure: str, ours: Sequence[Place], theirs: Sequence[Place]) -> None:
    for here, there in zip_longest(ours, theirs):
        if here != there:
            what = f"{here or 'nothing'}; {path} has {there or 'nothing'}"
            named = next((place.name for place in (here, there) if place and "." in place.name), structure)
            raise ForeignLibraryError(
                f"{named}: {structure} differs from the compiled library, which is of another version: here is {what}. "
                "Install the package again"
            )


def _told_by(library: ctypes.CDLL) -> dict[str, list[Place]]:
    """By structure: its fields, and at last its own place."""
    tell = library.expertfleet_layout
    tell.restype = ctypes.c_char_p
    kind, offset, size = ctypes.c_char(), ctypes.c_int64(), ctypes.c_int64()
    told: dict[str, list[Place]] = {}
    index = 0
    while name := tell(ctypes.c_int64(index), ctypes.byref(kind), ctypes.byref(offset), ctypes.byref(size)):
        place = Place(name.decode(), kind.value.decode(), offset.value, size.value)
        structure, _, field = place.name.partition(".")
        places = told.setdefault(structure, [])
        places.insert(len(places) - 1 if field else 0, place)
        index += 1
    return told


def _places_of(mirror: type[ctypes.Structure]) -> list[Place]:
    """The same of a mirror."""
    name = mirror.__name__
    fields = [(f"{name}.{field}", kind, getattr(mirror, field)) for field, kind, *_ in mirror._fields_]
    places = [Place(field, _kind_of(kind), place.offset, place.size) for field, kind, place in fields]
    return [*places, Place(name, "s", 0, ctypes.sizeof(mirror))]


def _kind_of(field: Any) -> str:
    while issubclass(field, ctypes.Array):
        field = field._type_
    if issubclass(field, ctypes.Structure):
        return "s"
    return "p" if issubclass(field, ctypes._Pointer) else _KINDS.get(field._type_, field._type_)
