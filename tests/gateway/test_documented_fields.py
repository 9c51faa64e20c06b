"""docs/serving.md tells every advisory field and its reason, names every honoured one, and says what inner keys do."""

import re
from pathlib import Path

import pytest

from expertfleet.gateway.http.errors import ApiError
from expertfleet.gateway.openai.fields import ADVISORY
from expertfleet.gateway.openai.inner_fields import (
    CALL,
    CALLED,
    CONTENT,
    FUNCTION,
    MEDIA,
    MESSAGES,
    PART,
    REPEATED_IN_CALLS,
    REPEATED_IN_FUNCTIONS,
    REPEATED_IN_MESSAGES,
    REPEATED_IN_PARTS,
    SWITCHES,
    TOOL,
    Kind,
    check_keys,
)
from expertfleet.gateway.openai.schemas import ChatRequest, CompletionRequest

DOCUMENT = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
KINDS: dict[str, list[Kind]] = {
    "a message of `system`, `developer` or `user`": [MESSAGES["system"], MESSAGES["developer"], MESSAGES["user"]],
    "a message of `assistant`": [MESSAGES["assistant"]],
    "a message of `tool`": [MESSAGES["tool"]],
    "a text part": [PART],
    "a call in `tool_calls`": [CALL],
    "a call's `function`": [CALLED],
    "a tool": [TOOL],
    "a tool's `function`": [FUNCTION],
}
GROUPS: dict[str, frozenset[str]] = {
    "media: a word of the name is one of": MEDIA,
    "content": CONTENT,
    "switches": SWITCHES,
    "of a message, repeats of `content`": frozenset(k for k, v in REPEATED_IN_MESSAGES.items() if v == "content"),
    "of a message, repeats of `reasoning_content`": frozenset(
        k for k, v in REPEATED_IN_MESSAGES.items() if v == "reasoning_content"
    ),
    "of a text part, repeats of `text`": frozenset(REPEATED_IN_PARTS),
    "of a call or its function, repeats of `arguments`": frozenset(REPEATED_IN_CALLS),
    "of a tool or its function, repeats of `parameters`": frozenset(REPEATED_IN_FUNCTIONS),
}


def rows(head: str) -> dict[str, list[str]]:
    table = DOCUMENT.partition(head)[2].partition("\n\n")[0].splitlines()[2:]
    return {cells[0]: cells[1:] for line in table for cells in [[cell.strip() for cell in line.strip("| ").split("|")]]}


def names(cell: str) -> frozenset[str]:
    return frozenset(re.findall(r"`(\w+)`", cell))


def refused(cell: str) -> frozenset[str]:
    """Without media, which are not told by their whole names."""
    cell, _, kept = cell.partition(" except ")
    switches = SWITCHES if "switches" in cell else frozenset()
    content = CONTENT if "content" in re.sub("`.*?`", "", cell) else frozenset()
    return (names(cell) | switches | content) - names(kept)


def test_the_advisory_table_is_the_codes() -> None:
    table = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", DOCUMENT, re.MULTILINE))
    assert {name: table.get(name) for name in ADVISORY} == dict(ADVISORY)


def test_every_honoured_field_is_named() -> None:
    fields = set(ChatRequest.model_fields) | set(CompletionRequest.model_fields)
    named = set(re.findall(r"`(\w+)`", DOCUMENT)) | {"model", "prompt", "skip_special_tokens"}
    assert fields <= named, fields - named


def test_the_tables_of_inner_keys_have_every_kind_of_object() -> None:
    assert list(rows("| object | honoured |")) == list(KINDS)
    assert {what: names(cells[0]) for what, cells in rows("| what | keys |").items()} == GROUPS


@pytest.mark.parametrize("title", KINDS)
def test_the_table_of_inner_keys_is_the_codes(title: str) -> None:
    honoured, refusals, advisory = rows("| object | honoured |")[title]
    for kind in KINDS[title]:
        assert names(honoured) == kind.honoured
        assert refused(refusals) == kind.refused
        assert ("media" in refusals) == bool(kind.media)
        ignored: set[str] = set()
        check_keys(
            {key: {"x": "y"} for key in names(advisory)}, kind, "here", ignored, dict.fromkeys(kind.honoured, "x")
        )
        assert ignored == {f"{kind.name}.{name}" for name in names(advisory)}
        for name in kind.refused:
            with pytest.raises(ApiError):
                check_keys({name: "x"}, kind, "here", set())
