"""Renders a chat with the checkpoint's Jinja template, so that no text of a user can become a control token.

Knows nothing of HTTP. 1. Messages and tools are checked and copied: null keys go but for ``content``, by which templates tell
a mere call; tools are sorted by key, and reasoning is there under both names that templates know; 2. the template is rendered
in a sandbox that knows of every character whether the template itself wrote it (``template_text.py``);
3. the result is cut at the names of control tokens that it wrote, and all the rest is ordinary text.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from .errors import CheckpointError
from .json_object import optional, read_json_object
from .template_environment import TemplateEnvironment
from .template_text import written, written_spans
from .tokenizer import TOKENIZER_FILE, Tokenizer, token_name, without_surrogates

TEMPLATE_FILE = "chat_template.jinja"
_MAX_DEPTH = 64
_NAMED_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
# Words of the format, which a client can choose among: a template may build the name of a control token with them.
_ROLES = frozenset({"system", "user", "assistant", "tool"})
# What a template raises when a message lacks something that it needs, or has something of another type.
_RENDER_ERRORS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


class TemplateError(ValueError):
    """A chat that the template cannot render; the fault lies in the request."""


class ChatTemplate:
    def __init__(self, source: str, tokenizer: Tokenizer, named_tokens: Mapping[str, str], file: str) -> None:
        self._tokenizer = tokenizer
        self._named_tokens = {key: written(name) for key, name in named_tokens.items()}
        try:
            self._template = TemplateEnvironment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise CheckpointError(file, f"line {error.lineno}", error.message or "syntax error") from error

    @classmethod
    def from_dir(cls, directory: Path, tokenizer: Tokenizer) -> "ChatTemplate":
        config = read_json_object(directory / TOKENIZER_FILE)
        named = {key: name for key in _NAMED_TOKENS if (name := token_name(config, key)) is not None}
        path = directory / TEMPLATE_FILE
        if not optional(path):
            if not config.has("chat_template"):
                raise CheckpointError(directory, "", f"holds no {TEMPLATE_FILE}")
            return cls(config.text("chat_template"), tokenizer, named, config.file)
        try:
            return cls(path.read_text(encoding="utf-8"), tokenizer, named, str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(path, "", f"cannot be read: {error}") from error

    def render_ids(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        rendered = self._render(messages, tools, add_generation_prompt)
        return self._tokenizer.encode_prompt(rendered, written_spans(rendered))

    def render_text(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """For people and tests only: here a control token cannot be told from a user's text that spells its name."""
        return str.__str__(self._render(messages, tools, add_generation_prompt))

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
    ) -> str:
        context = {
            **self._named_tokens,
            "messages": [_message(index, message) for index, message in enumerate(messages)],
            "tools": [_tool(index, tool) for index, tool in enumerate(tools or [])] or None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return self._template.render(context)
        except _RENDER_ERRORS as error:
            raise TemplateError(f"messages: {error}") from error


def _message(index: int, message: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise TemplateError(f"messages.{index}: must be an object with a role")
    kept = {key: value for key, value in message.items() if value is not None or key == "content"}
    plain: dict[str, Any] = _copied(kept, f"messages.{index}")
    if "tool_calls" in plain:
        plain["tool_calls"] = _tool_calls(plain["tool_calls"], f"messages.{index}.tool_calls")
    _check_content(plain.get("content", ""), f"messages.{index}.content")
    if plain["role"] in _ROLES:
        plain["role"] = written(plain["role"])
    return {"thinking": plain["reasoning_content"], **plain} if "reasoning_content" in plain else plain


def _check_content(content: Any, where: str) -> None:
    if content is None or isinstance(content, str):
        return
    if not isinstance(content, list):
        raise TemplateError(f"{where}: must be text or a list of parts, is {type(content).__name__}")
    for index, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else part
            raise TemplateError(f"{where}.{index}: must be a text part, is {kind!r}")


def _tool_calls(calls: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise TemplateError(f"{where}: must be a list, is {type(calls).__name__}")
    checked: list[dict[str, Any]] = []
    for index, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(call.get("id"), str):
            raise TemplateError(f"{where}.{index}: must be an object with an id and a function")
        if not isinstance(function.get("arguments"), (str, dict)):
            raise TemplateError(f"{where}.{index}.function.arguments: must be text or an object")
        checked.append({**_without_nulls(call), "function": _without_nulls(function)})
    return checked


def _tool(index: int, tool: Mapping[str, Any]) -> dict[str, Any]:
    """Nulls are dropped around the parameters' schema only: inside, ``default: null`` has a meaning."""
    if not isinstance(tool, Mapping):
        raise TemplateError(f"tools.{index}: must be an object, is {type(tool).__name__}")
    plain = _without_nulls(tool)
    if isinstance(plain.get("function"), Mapping):
        plain["function"] = _without_nulls(plain["function"])
    copied: dict[str, Any] = _sorted_by_key(_copied(plain, f"tools.{index}"))
    return copied


def _without_nulls(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in value.items() if item is not None}


def _sorted_by_key(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted_by_key(value[key]) for key in sorted(value)}
    return [_sorted_by_key(item) for item in value] if isinstance(value, list) else value


def _copied(value: Any, where: str, depth: int = 0) -> Any:
    """A deep copy in plain dicts, lists and scalars, with lone surrogates replaced."""
    if depth > _MAX_DEPTH:
        raise TemplateError(f"{where}: nested deeper than {_MAX_DEPTH} levels")
    if isinstance(value, str):
        return without_surrogates(value)
    if isinstance(value, Mapping):
        return {without_surrogates(str(key)): _copied(item, where, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_copied(item, where, depth + 1) for item in value]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    raise TemplateError(f"{where}: holds a {type(value).__name__}, which JSON cannot hold")
