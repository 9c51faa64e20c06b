"""Every structure that Python shares with the compiled library lies as it does there, or the library is refused by name."""

import ast
import ctypes
import logging
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from expertfleet import kernels
from expertfleet.kernels import mirrors, native, native_lanes
from expertfleet.kernels.errors import ForeignLibraryError
from expertfleet.kernels.mirrors import check_mirrors
from expertfleet.kernels.native_lanes import MIRRORS, AdmissionFilter, Calls, FanoutArgs, WorkerEnd

FOLDER = Path(kernels.__path__[0])
OTHER_LIBRARY = np._core._multiarray_umath.__file__  # type: ignore[attr-defined]


@pytest.fixture
def library(calls: Calls) -> ctypes.CDLL:
    found = native.load()
    assert isinstance(found, native.Native)
    return ctypes.PyDLL(found.path)


def structures_in(path: Path) -> Iterator[str]:
    """Classes of ctypes' structures and unions, by what they are derived from."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef):
            bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
            if bases & {"Structure", "Union", "BigEndianStructure", "LittleEndianStructure", *NAMES}:
                yield node.name


NAMES = {mirror.__name__ for mirror in MIRRORS}


def test_every_structure_in_kernels_is_compared(library: ctypes.CDLL) -> None:
    found = [name for path in sorted(FOLDER.rglob("*.py")) for name in structures_in(path)]
    assert sorted(found) == sorted(NAMES)
    assert set(mirrors._told_by(library)) == NAMES
    assert len(MIRRORS) == len(NAMES)


def test_mirrors_lie_as_the_librarys_own(library: ctypes.CDLL) -> None:
    check_mirrors(library, MIRRORS)
    assert (
        str(mirrors._told_by(library)["AdmissionFilter"][1])
        == "AdmissionFilter.min_epoch, unsigned, 16 bytes from 8 on"
    )


def changed(mirror: type[ctypes.Structure], fields: list[Any]) -> list[type[ctypes.Structure]]:
    """All mirrors, this one with other fields."""
    other = type(mirror.__name__, (ctypes.Structure,), {"_fields_": fields})
    return [other if each is mirror else each for each in MIRRORS]


def changes() -> Iterator[Any]:
    for mirror in MIRRORS:
        fields = list(mirror._fields_)
        for number, (name, kind, *_) in enumerate(fields):
            before, after = fields[:number], fields[number + 1 :]
            twin = ctypes.c_double if mirrors._kind_of(kind) != "f" else ctypes.c_int64
            other = twin * (ctypes.sizeof(kind) // 8)
            variants = {
                "lacking": before + after,
                "renamed": [*before, (f"{name}_", kind), *after],
                "another kind": [*before, (name, other), *after],
                "larger": [*before, (name, kind * 2), *after],
                "one before it": [*before, ("added", ctypes.c_int64), *fields[number:]],
            }
            if after:
                variants["after the next"] = [*before, after[0], fields[number], *after[1:]]
            for what, variant in variants.items():
                yield pytest.param(mirror, variant, f"{mirror.__name__}.{name}", id=f"{mirror.__name__}.{name} {what}")


@pytest.mark.parametrize(("mirror", "fields", "name"), list(changes()))
def test_a_changed_mirror_is_refused_and_the_field_named(
    library: ctypes.CDLL, mirror: type[ctypes.Structure], fields: list[Any], name: str
) -> None:
    with pytest.raises(ForeignLibraryError, match=rf"\b{mirror.__name__} differs .* version: here is ") as caught:
        check_mirrors(library, changed(mirror, fields))
    assert f"{name}," in str(caught.value)
    assert library._name in str(caught.value)


def test_a_field_more_at_the_end_a_structure_more_and_one_less_are_refused(library: ctypes.CDLL) -> None:
    with pytest.raises(
        ForeignLibraryError, match=r"^FanoutArgs\.added: .*here is FanoutArgs\.added, unsigned, 8 bytes"
    ):
        check_mirrors(library, changed(FanoutArgs, [*FanoutArgs._fields_, ("added", ctypes.c_uint64)]))
    more = type("More", (ctypes.Structure,), {"_fields_": [("one", ctypes.c_int64)]})
    with pytest.raises(ForeignLibraryError, match=r"^More\.one: .* has nothing"):
        check_mirrors(library, [*MIRRORS, more])
    with pytest.raises(ForeignLibraryError, match=r"^AdmissionFilter\.fingerprint: .*here is nothing"):
        check_mirrors(library, [mirror for mirror in MIRRORS if mirror is not AdmissionFilter])


def test_a_signed_number_is_no_unsigned_one_and_an_address_no_number(library: ctypes.CDLL) -> None:
    for name, other in (("area", ctypes.c_uint64), ("body", ctypes.c_uint64), ("clear", ctypes.c_int64)):
        fields = [(field, other if field == name else kind) for field, kind in WorkerEnd._fields_]
        with pytest.raises(ForeignLibraryError, match=rf"^WorkerEnd\.{name}: "):
            check_mirrors(library, changed(WorkerEnd, fields))


def test_compiled_calls_are_refused_when_a_mirror_differs(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_lanes, "MIRRORS", changed(AdmissionFilter, AdmissionFilter._fields_[:-1]))
    with pytest.raises(ForeignLibraryError, match=r"^AdmissionFilter\.item_bytes: "):
        native_lanes.calls.__wrapped__()


def test_a_library_without_the_lanes_calls_is_named_as_older_and_lanes_do_without(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found = native.load()
    assert isinstance(found, native.Native)
    monkeypatch.setattr(found, "path", OTHER_LIBRARY)
    with caplog.at_level(logging.WARNING):
        assert native_lanes.calls.__wrapped__() is None
    assert (
        f"lanes do without compiled calls: {OTHER_LIBRARY} is older than the package, install it again" in caplog.text
    )
    assert "expertfleet_layout" in caplog.text


def test_a_library_without_the_kernels_calls_is_named_as_older(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native.importlib.util, "find_spec", lambda name: ModuleSpec(name, None, origin=OTHER_LIBRARY))
    reason = native.load.__wrapped__()
    assert isinstance(reason, str)
    assert reason.startswith(f"{OTHER_LIBRARY} is older than the package, install it again (expertfleet_")
    assert reason.endswith(" is not in it)")
