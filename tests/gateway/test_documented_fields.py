"""docs/serving.md tells every advisory field and its reason, and names every honoured one."""

import re
from pathlib import Path

from expertfleet.gateway.fields import ADVISORY
from expertfleet.gateway.schemas import ChatRequest, CompletionRequest

DOCUMENT = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")


def test_the_advisory_table_is_the_codes() -> None:
    table = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", DOCUMENT, re.MULTILINE))
    assert {name: table.get(name) for name in ADVISORY} == dict(ADVISORY)


def test_every_honoured_field_is_named() -> None:
    fields = set(ChatRequest.model_fields) | set(CompletionRequest.model_fields)
    named = set(re.findall(r"`(\w+)`", DOCUMENT)) | {"model", "prompt", "skip_special_tokens"}
    assert fields <= named, fields - named
