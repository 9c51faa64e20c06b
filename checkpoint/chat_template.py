"""Renders a chat with the checkpoint's Jinja template, so that no text of a user can become a control token.

Knows nothing of HTTP. 1. Messages and tools are checked and copied: null keys go, tools are sorted by key; 2. in every
string of theirs a guard character (one that occurs nowhere in them) is put behind each character with which a control
token's name can begin; 3. the template is rendered in a sandbox; 4. the result is cut at unguarded names, which only the
template itself can have written, and the guards are dropped from all the rest.
"""

import datetime
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from .errors import CheckpointError
from .json_object import read_json_object
from .tokenizer import TOKENIZER_FILE, Tokenizer, without_surrogates

TEMPLATE_FILE = "chat_template.jinja"
_MAX_DEPTH = 64
# Private-use planes: nearly never in text, and there are more of them than most requests have characters.
_GUARDS = (*range(0xF0000, 0xFFFFE), *range(0x100000, 0x10FFFE), *range(0xE000, 0xF900))
_NAMED_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
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
        self._named_tokens = dict(named_tokens)
        try:
            self._environment = _environment()
            self._template = self._environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise CheckpointError(file, f"line {error.lineno}", error.message or "syntax error") from error
        self._fixed_characters = set(source).union(*tokenizer.special)

    @classmethod
    def from_dir(cls, directory: Path, tokenizer: Tokenizer) -> "ChatTemplate":
        config = read_json_object(directory / TOKENIZER_FILE)
        named = {key: config.data[key] for key in _NAMED_TOKENS if isinstance(config.data.get(key), str)}
        path = directory / TEMPLATE_FILE
        if not path.exists():
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
        rendered, guard = self._render(messages, tools, add_generation_prompt)
        return self._tokenizer.encode_prompt(rendered, guard)

    def render_text(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """For people and tests only: here a control token cannot be told from a user's text that spells its name."""
        rendered, guard = self._render(messages, tools, add_generation_prompt)
        return rendered.replace(guard, "")

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
    ) -> tuple[str, str]:
        plain_messages = [_message(index, message) for index, message in enumerate(messages)]
        plain_tools = [_tool(index, tool) for index, tool in enumerate(tools or [])]
        guard = self._guard((*_strings(plain_messages), *_strings(plain_tools)))
        guarded = _marker(guard, self._tokenizer.special_initials)
        # NOTE: the environment is shared by all requests, so what belongs to one travels in its context.
        context = {
            **self._named_tokens,
            "messages": _map_strings(plain_messages, guarded),
            "tools": _map_strings(plain_tools, guarded) or None,
            "add_generation_prompt": add_generation_prompt,
            "_guard": guard,
            "_guarded": guarded,
        }
        try:
            return self._template.render(context), guard
        except _RENDER_ERRORS as error:
            raise TemplateError(f"messages: {str(error).replace(guard, '')}") from error

    def _guard(self, strings: Sequence[str]) -> str:
        used = self._fixed_characters.union(*strings)
        for code in _GUARDS:
            if chr(code) not in used:
                return chr(code)
        raise TemplateError("messages: every private-use character occurs in them, one must be left free")


class _Generation(jinja2.ext.Extension):
    """``{% generation %}…{% endgeneration %}`` marks what training learns from; rendering ignores the marks."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> jinja2.Environment:
    """As transformers sets it up, because templates are written for that."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


@jinja2.pass_context
def _tojson(
    context: jinja2.runtime.Context,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Guards go before and come back after: an escaped one could not be dropped any more."""
    plain = _map_strings(value, functools.partial(_without, context["_guard"]))
    text = json.dumps(plain, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return str(context["_guarded"](text))


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)


def _without(guard: str, text: str) -> str:
    return text.replace(guard, "")


def _marker(guard: str, initials: frozenset[str]) -> Callable[[str], str]:
    table = str.maketrans({initial: initial + guard for initial in initials})
    return lambda text: text.translate(table)


def _message(index: int, message: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise TemplateError(f"messages.{index}: must be an object with a role")
    plain: dict[str, Any] = _copied(_without_nulls(message), f"messages.{index}")
    if "tool_calls" in plain:
        plain["tool_calls"] = _tool_calls(plain["tool_calls"], f"messages.{index}.tool_calls")
    _check_content(plain.get("content", ""), f"messages.{index}.content")
    return plain


def _check_content(content: Any, where: str) -> None:
    if isinstance(content, str):
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


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _map_strings(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key) if isinstance(key, str) else key: _map_strings(item, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_map_strings(item, change) for item in value]
    return value
