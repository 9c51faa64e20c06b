"""Tools and tool_choice as clients send them."""

from typing import Any

import pytest

from expertfleet.gateway.http.errors import ApiError
from expertfleet.gateway.openai.schemas import ChatRequest, parse
from expertfleet.gateway.openai.tools import Toolbox, read_tools

TOOL: dict[str, Any] = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def read(**fields: Any) -> Toolbox:
    request, _ = parse(ChatRequest, {"model": "m", "messages": [{}], **fields})
    return read_tools(request, set())


def test_auto_null_and_absent_allow_calls() -> None:
    for fields in ({}, {"tool_choice": "auto"}, {"tool_choice": None}):
        assert read(tools=[TOOL], **fields).callable
    assert not read().callable


def test_none_keeps_the_declaration_and_forbids_calls() -> None:
    toolbox = read(tools=[TOOL], tool_choice="none")
    assert toolbox.declared == (TOOL,)
    assert toolbox.forbids_calls


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "f"}}, "other", 5, {}])
def test_other_choices_are_refused(choice: Any) -> None:
    with pytest.raises(ApiError, match="tool_choice") as caught:
        read(tools=[TOOL], tool_choice=choice)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("tool", "where"),
    [
        ({"type": "builtin_function", "function": {"name": "$web_search"}}, "tools[1].type"),
        ({"type": "function"}, "tools[1].function"),
        ({"type": "function", "function": {"name": "a b"}}, "tools[1].function.name"),
        ({"type": "function", "function": {"name": "x" * 65}}, "tools[1].function.name"),
        ({"type": "function", "function": {"name": "f"}}, "tools[1].function.name"),
        ({"type": "function", "function": {"name": "g", "parameters": "x"}}, "tools[1].function.parameters"),
        ({"type": "function", "function": {"name": "g", "description": 5}}, "tools[1].function.description"),
        ({"type": "function", "function": {"name": "g", "strict": "yes"}}, "tools[1].function.strict"),
    ],
)
def test_bad_tools_are_named(tool: dict[str, Any], where: str) -> None:
    with pytest.raises(ApiError) as caught:
        read(tools=[TOOL, tool])
    assert caught.value.param == where
