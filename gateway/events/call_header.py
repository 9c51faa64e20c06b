"""Which tool a call's header names.

Knows nothing of tokens or state. A header is ``functions.name:7``. What a model writes instead is read in this order:

1. a declared name in it that stands by itself, or with nothing around it but what ids are made of (``functionsexec5``,
   ``exec_6b0e7c24``); of several the longest; if need be whatever its case and what parts its words;
2. an undeclared name, if the header has the right form: the client can tell the model that there is no such tool;
3. the only tool that there is;
4. the one tool that the arguments fit, among several named in the header, or else among all.
"""

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Tools = Mapping[str, Mapping[str, Any]]
_Span = tuple[int, int, str]  # a name, and from where to where it is in a text

_LONGEST = 256  # characters of a header that are looked at; names have 64 at most
_EXACT = re.compile(r"functions\.(?P<name>[^\s:]+):[0-9]+")
_CANONICAL = re.compile(r"(?P<path>(?:functions?\s*\.\s*)*(?P<name>\w[\w.-]{0,63}))\s*:\s*[0-9]+", re.IGNORECASE)
_WORDS = r"functions?|func|fn|fc|tooluse|toolu|tools?|calls?|chatcmpl|index|id|name"
_RANDOM = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|(?=[a-f]*[0-9])[0-9a-f]{6,}(?![^\W_])"
# What ids are made of beside names. Possessive, as random parts can be read in several ways.
_FILLER = re.compile(rf"(?:{_RANDOM}|{_WORDS}|[\W\d_])*+", re.IGNORECASE)
# What random ids do not spell by chance.
_DISTINCT = re.compile(r"(?=.*[g-z]).{4,}", re.IGNORECASE)
_FOREIGN_ID = re.compile(r"(?:call|toolu|tooluse|chatcmpl|fc)[_-].*", re.IGNORECASE)
_WORD_BEFORE = re.compile(r"[\w-]\Z")
_WORD_AFTER = re.compile(r"[\w-]|\.[^\W\d]")
_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}


@dataclass(frozen=True)
class Caller:
    """The tool's name, or None while only the arguments can tell which of ``tools`` it is.

    ``hints`` are names that the header holds within other words; they decide between tools that fit alike.
    """

    name: str | None
    tools: Tools
    is_declared_name: bool = False  # and the header has it
    hints: Collection[str] = ()

    def by_arguments(self, arguments: str) -> str | None:
        """The one tool whose parameters hold every key given, or else some of them, and whose required ones are all given."""
        given = _object(arguments)
        if given is None:
            return None
        able = {
            name: schema for name, schema in self.tools.items() if set(_strings(schema.get("required"))) <= set(given)
        }
        fitting = [name for name, schema in able.items() if set(given) <= set(_properties(schema))]
        fitting = fitting or _with_most(given, able)
        narrower: tuple[Callable[[str], bool], ...] = (
            lambda name: _has_types(given, self.tools[name]),
            lambda name: name in self.hints,
        )
        for holds in narrower:
            fitting = list(filter(holds, fitting)) or fitting
        return fitting[0] if len(fitting) == 1 else None


def read_header(header: str, tools: Tools) -> Caller:
    """``tools`` are one at least."""
    header = header.strip()[:_LONGEST]
    exact = _EXACT.fullmatch(header)
    if exact and exact["name"] in tools:
        return Caller(exact["name"], tools, is_declared_name=True)
    canonical = _CANONICAL.fullmatch(header)
    named = _named(canonical["path"] if canonical else header, tools, ends_with_it=canonical is not None)
    if named:
        return Caller(named[0] if len(named) == 1 else None, {name: tools[name] for name in named}, len(named) == 1)
    if canonical and not (_FILLER.fullmatch(canonical["name"]) or _FOREIGN_ID.fullmatch(canonical["name"])):
        return Caller(canonical["name"], tools)
    if len(tools) == 1:
        return Caller(next(iter(tools)), tools)
    return Caller(None, tools, hints=_longest(_spans(header, tools)))


def is_name(header: str, tools: Tools) -> bool:
    """Whether the header is good enough by itself, with no marker that says so."""
    return len(header.split()) == 1 and read_header(header, tools).is_declared_name


def _named(text: str, tools: Tools, *, ends_with_it: bool) -> list[str]:
    """The declared names in ``text``. If it ``ends_with_it``, its end is a name's: ``search.pages`` is not ``search``."""
    found: list[list[str]] = [[]]
    for fold in (str, _folded, _squeezed):
        spellings: dict[str, list[str]] = {}
        for name in tools:
            spellings.setdefault(fold(name), []).append(name)
        found.append(
            [name for spelling in _spelled(fold(text), spellings, ends_with_it) for name in spellings[spelling]]
        )
    return max(found, key=lambda names: max(map(len, names), default=0))


def _spelled(text: str, names: Collection[str], ends_with_it: bool) -> Collection[str]:
    holds = _ends_a_name if ends_with_it else _stands_as_name
    return _longest([span for span in _spans(text, names) if holds(text[: span[0]], span[2], text[span[1] :])])


def _spans(text: str, names: Collection[str]) -> list[_Span]:
    return [(*found.span(), name) for name in names if name for found in re.finditer(re.escape(name), text)]


def _longest(spans: list[_Span]) -> Collection[str]:
    """The names, but for those that lie within a longer one."""
    kept: list[_Span] = []
    for start, end, name in sorted(spans, key=lambda span: span[0] - span[1]):
        if not any(first <= start and end <= last for first, last, _ in kept):
            kept.append((start, end, name))
    return dict.fromkeys(name for _, _, name in kept)


def _stands_as_name(before: str, name: str, after: str) -> bool:
    stands_alone = not (_WORD_BEFORE.search(before) or _WORD_AFTER.match(after))
    return stands_alone or (_is_glued(before, name, after) and _FILLER.fullmatch(after) is not None)


def _ends_a_name(before: str, name: str, after: str) -> bool:
    return not after and (not before or before.endswith(".") or _is_glued(before, name, after))


def _is_glued(before: str, name: str, after: str) -> bool:
    """A digit before a short name belongs to a random id that happens to spell it, and so does filler around it to filler."""
    fills = _FILLER.fullmatch(before) is not None and not (before[-1:].isdigit() and not _DISTINCT.fullmatch(name))
    return fills and not _FILLER.fullmatch(before + name + after)


def _folded(text: str) -> str:
    return text.lower().replace("-", "").replace("_", "")


def _squeezed(text: str) -> str:
    return "".join(_folded(text).replace(".", "").split())


def _object(arguments: str) -> Mapping[str, Any] | None:
    try:
        given = json.loads(arguments)
    except (ValueError, RecursionError):
        return None
    return given if isinstance(given, dict) else None


def _with_most(given: Mapping[str, Any], tools: Tools) -> list[str]:
    """The tools that name the most of the keys, and some: a schema takes others as well, unless it says otherwise."""
    known = {
        name: len(set(_properties(schema)) & set(given))
        for name, schema in tools.items()
        if schema.get("additionalProperties") is not False
    }
    most = max(known.values(), default=0)
    return [name for name, count in known.items() if count == most > 0]


def _has_types(given: Mapping[str, Any], schema: Mapping[str, Any]) -> bool:
    """Whether each value is of a type that its parameter names, if it names any."""
    properties = _properties(schema)
    return all(_has_type(value, properties.get(key)) for key, value in given.items())


def _has_type(value: Any, parameter: Any) -> bool:
    if not isinstance(parameter, dict):
        return True
    if isinstance(parameter.get("enum"), list) and value not in parameter["enum"]:
        return False
    if "const" in parameter and value != parameter["const"]:
        return False
    for key in ("anyOf", "oneOf"):
        if isinstance(parameter.get(key), list) and not any(_has_type(value, one) for one in parameter[key]):
            return False
    named = parameter.get("type")
    names = [named] if isinstance(named, str) else _strings(named)
    known = [_TYPES[name] for name in names if name in _TYPES]
    is_bool = isinstance(value, bool)
    return not known or any(isinstance(value, types) and (is_bool is (types == (bool,))) for types in known)


def _properties(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    properties = schema.get("properties")
    return properties if isinstance(properties, dict) else {}


def _strings(value: Any) -> Sequence[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []
