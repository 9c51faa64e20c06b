"""Jinja as transformers sets it up, because templates are written for that; it knows what the template itself wrote.

Knows nothing of chats or tokens. Every constant of a template and all its literal text come out as ``TemplateText``;
what a template is given stays what it is. Joins and the filters that would forget who wrote what are replaced.
"""

import datetime
import functools
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jinja2
import jinja2.compiler
import jinja2.ext
import jinja2.filters
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from markupsafe import Markup

from .template_text import TemplateText, is_written, joined, of_pieces, safe, tracked, written

# Filters whose result is the template's where all the text they are given is.
_OF_ONE_WRITER = ("indent", "title", "wordwrap")
# Methods that put other text into a string.
_INSERTING = frozenset({"join", "replace"})


class _CodeGenerator(jinja2.compiler.CodeGenerator):
    """Compiles constants to members of the environment's ``texts``."""

    environment: "TemplateEnvironment"

    def _output_const_repr(self, group: Iterable[Any]) -> str:
        return self.environment.constant("".join(map(str, group)))

    def visit_Const(self, node: jinja2.nodes.Const, frame: jinja2.compiler.Frame) -> None:
        self.write(self._source(node.as_const(frame.eval_ctx)))

    @jinja2.compiler.optimizeconst
    def visit_Concat(self, node: jinja2.nodes.Concat, frame: jinja2.compiler.Frame) -> None:
        if frame.eval_ctx.volatile or frame.eval_ctx.autoescape:
            super().visit_Concat(node, frame)
            return
        self.write("environment.concat(map(str, (")
        for item in node.nodes:
            self.visit(item, frame)
            self.write(", ")
        self.write(")))")

    def _source(self, value: Any) -> str:
        """The Python expression of a constant, which may hold others."""
        if type(value) is str:
            return self.environment.constant(value)
        if type(value) is dict:
            return "{" + ", ".join(f"{self._source(key)}: {self._source(item)}" for key, item in value.items()) + "}"
        if type(value) in (list, tuple):
            return f"{type(value).__name__}(({''.join(self._source(item) + ', ' for item in value)}))"
        return repr(value)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    code_generator_class = _CodeGenerator
    concat = staticmethod(joined)

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"])
        self.texts: list[TemplateText] = []
        self.filters |= {name: _of_one_writer(self.filters[name]) for name in _OF_ONE_WRITER}
        self.filters |= {"join": _join, "replace": _replace, "safe": _safe, "tojson": _tojson}
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}

    def constant(self, text: str) -> str:
        """The Python expression of the text."""
        self.texts.append(written(text))
        return f"environment.texts[{len(self.texts) - 1}]"

    def getattr(self, obj: Any, attribute: str) -> Any:
        return super().getattr(tracked(obj) if attribute in _INSERTING else obj, attribute)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None or not isinstance(value.__self__, TemplateText):
            return wrapped

        def formatted(*args: Any, **kwargs: Any) -> str:
            return self._formatted(value.__self__, value.__name__, args, kwargs)

        return formatted

    def _formatted(self, template: TemplateText, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        text = str.__str__(template)
        plain = super().wrap_str_format(getattr(text, method))
        assert plain is not None
        result = plain(*args, **kwargs)
        if not is_written(template):
            return result
        formatter = _Formatter(self)
        formatter.vformat(text, *(((), args[0]) if method == "format_map" else (args, kwargs)))
        return of_pieces(result, formatter.pieces)


class _Formatter(SandboxedFormatter):
    """Notes the pieces of what it makes; those of nested formats are noted as well and fit nowhere."""

    def __init__(self, environment: jinja2.Environment) -> None:
        super().__init__(environment)
        self.pieces: list[str] = []

    def parse(self, format_string: str) -> Iterable[Any]:
        for literal, *field in super().parse(format_string):
            self.pieces.append(written(literal))
            yield (literal, *field)

    def format_field(self, value: Any, format_spec: str) -> str:
        text = str(super().format_field(value, format_spec))
        self.pieces.append(value if isinstance(value, str) and not format_spec else text)
        return text


class _Generation(jinja2.ext.Extension):
    """``{% generation %}…{% endgeneration %}`` marks what training learns from; rendering ignores the marks."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


def _of_one_writer(filter_: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(filter_)
    def filtered(*args: Any, **kwargs: Any) -> Any:
        result = filter_(*args, **kwargs)
        texts = [value for value in (*args, *kwargs.values()) if isinstance(value, str)]
        return written(result) if type(result) is str and texts and all(map(is_written, texts)) else result

    return filtered


@jinja2.pass_eval_context
def _join(context: jinja2.nodes.EvalContext, value: Any, d: Any = "", attribute: str | int | None = None) -> str:
    return jinja2.filters.sync_do_join(context, value, tracked(d), attribute)


@jinja2.pass_eval_context
def _replace(context: jinja2.nodes.EvalContext, s: Any, old: str, new: str, count: int | None = None) -> str:
    return jinja2.filters.do_replace(context, tracked(s), old, new, count)


def _safe(value: Any) -> Markup:
    return safe(value) if isinstance(value, TemplateText) else Markup(value)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)
