"""Headers of every form name the tool that was meant, and never one that was not."""

from typing import Any

import pytest

from expertfleet.gateway.events.call_header import read_header

ANY: dict[str, Any] = {}
WEATHER = ("get", "get_weather", "get_weather_now")


def name_in(header: str, *names: str) -> str | None:
    return read_header(header, dict.fromkeys(names, ANY)).name


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("functions.get_weather:0", "get_weather"),
        (" functions.get_weather:0\n", "get_weather"),
        ("functions. get_weather : 0", "get_weather"),
        ("functions.get_weather\n:0", "get_weather"),
        ("functions.get_weather:call_1", "get_weather"),
        ("functions.get_weather:", "get_weather"),
        ("functions.get_weather", "get_weather"),
        ("functions.functions.get_weather:1", "get_weather"),
        ("functions.ns.get_weather:1", "get_weather"),
        ("functions_get_weather_0", "get_weather"),
        ("functionsget_weather5", "get_weather"),
        ("functionsget5", "get"),
        ("functionsget_weather_now5", "get_weather_now"),
        ("get_weather_now5", "get_weather_now"),
        ("call_get_3", "get"),
        ("tool:get_weather", "get_weather"),
        ("toolu_get_weather_01", "get_weather"),
        ("tool_call_get_weather", "get_weather"),
        ("<get_weather>", "get_weather"),
        ("get_weather()", "get_weather"),
        ("Functions.GET_WEATHER:2", "get_weather"),
        ("functions.get-weather:0", "get_weather"),
        ("functions.getWeatherNow:0", "get_weather_now"),
        ("functions.get weather:0", "get_weather"),
        ("functions.get.weather.now:0", "get_weather_now"),
        ("get weather now", "get_weather_now"),
        ("get_weather_6b0e7c24f0c44f0d996b59e5", "get_weather"),
        ("get_weather_call_6b0e7c24f0c44f0d996b59e5", "get_weather"),
        ("call_6b0e7c24_get_weather", "get_weather"),
        ("get_weather6b0e7c24f0", "get_weather"),
        ("get_weather-550e8400-e29b-41d4-a716-446655440000", "get_weather"),
        ("5get_weather", "get_weather"),
        ("fnget_weather0", "get_weather"),
        ("func:get_weather:0", "get_weather"),
        ("get_weather:0 " + "x" * 100_000, "get_weather"),
    ],
)
def test_a_declared_name_is_found_and_of_several_the_longest(header: str, name: str) -> None:
    assert name_in(header, *WEATHER) == name
    assert name_in(header, *reversed(WEATHER)) == name


@pytest.mark.parametrize(
    ("header", "names", "name"),
    [
        ("functionsexec5", ("exec", "bash"), "exec"),
        ("functions.mcp__portal__search-documents:0", ("search", "mcp__portal__search-documents"), 1),
        ("mcp__portal__search-documents3", ("search", "mcp__portal__search-documents"), 1),
        ("functions.mcp__portal__search_documents:0", ("documents", "mcp__portal__search-documents"), 1),
        ("functions.ns.tool:0", ("tool", "ns.tool"), 1),
        ("ns.tool5", ("tool", "ns.tool"), 1),
        ("functions.tool:0", ("tool", "ns.tool"), 0),
        ("functions.tool:x", ("tool", "ns.tool"), 0),
        ("functions.x:0", ("x", "functions.x"), 0),
        ("functions.x:0", ("y", "functions.x"), 1),
        ("exec25", ("exec", "exec2"), 1),
        ("call:0", ("call", "get"), 0),
        ("0", ("1", "0"), 1),
        ("functions.a:0", ("--", "a"), 1),
        ("exec_6b0e7c24", ("exec", "bash"), 0),
        ("call_5exec", ("exec", "bash"), 0),
        ("exec_sha256", ("exec_sha", "exec"), 0),
        ("mcp.fs.read-file:0", ("read-file", "mcp__fs__read-file"), 1),
        ("functions.Run:0", ("r_u_n", "Run"), 1),
    ],
)
def test_names_that_look_like_others_or_like_ids(header: str, names: tuple[str, ...], name: str | int) -> None:
    assert name_in(header, *names) == (names[name] if isinstance(name, int) else name)


@pytest.mark.parametrize(
    ("header", "names"),
    [
        ("widget_3", WEATHER),
        ("get_weathers_1", WEATHER),
        ("functions.get_weather.more", WEATHER),
        ("functions.nope", WEATHER),
        ("functions5", ("s", "ion")),
        ("call_5", ("call", "get")),
        ("call_6b0e7c24f0c44f0d996b59e5", ("a", "b", "e", "f")),
        ("toolu_01AbCdEf", ("A", "tool")),
        ("chatcmpl-tool-1f2e", ("f", "e")),
        ("functions.call_6b0e7c:0", ("b", "get")),
        ("functions.Get:0", ("get", "GET")),
        ("functions.6b0e7c24:0", WEATHER),
        ("6b0e7c24f0c44f0d996b59e5:0", WEATHER),
        ("550e8400-e29b-41d4-a716-446655440000:0", WEATHER),
        ("call_5get", ("get", "set")),
        ("exec_sha256", ("exec", "bash")),
        ("123456-" * 36 + "x", WEATHER),
        ("get and search", ("get", "search")),
        *((header, WEATHER) for header in ("", "0", ":0", "functions:0", "functions.:0", "functions.0:1", "call00003")),
    ],
)
def test_what_is_no_name_is_left_to_the_arguments(header: str, names: tuple[str, ...]) -> None:
    assert name_in(header, *names) is None


@pytest.mark.parametrize("header", ["call00003", "", "0", "call_6b0e7c24f0c44f0d996b59e5", "functions.nope", "toolu_1"])
def test_without_a_name_it_is_the_only_tool(header: str) -> None:
    assert name_in(header, "get_weather") == "get_weather"


@pytest.mark.parametrize("name", ["nope", "get_weather_later", "get_weather.more", "widget", "天气", "x" * 64])
def test_the_right_form_names_an_undeclared_tool(name: str) -> None:
    for tools in (WEATHER, ("get",)):
        assert name_in(f"functions.{name}:0", *tools) == name
        assert name_in(f"{name}:12", *tools) == name
        assert not read_header(f"{name}:12", dict.fromkeys(tools, ANY)).is_declared_name


def test_an_undeclared_name_that_no_client_could_send_back_is_none() -> None:
    assert name_in("functions." + "x" * 65 + ":0", *WEATHER) is None
    assert name_in("functions.a<b:0", *WEATHER) is None


def schema(*required: str, **types: Any) -> dict[str, Any]:
    properties = {name: {"type": kind} if kind else {} for name, kind in types.items()}
    return {"type": "object", "properties": properties, "required": list(required)}


TOOLS = {
    "read": schema("path", path="string"),
    "seek": schema("path", path="string", at="integer"),
    "wait": schema("s", s="number"),
    "tick": schema("s", s=["boolean", "null"]),
    "exec": schema("command", command="string"),
    "bash": schema("command", command="string"),
    "stop": {},
}


@pytest.mark.parametrize(
    ("header", "arguments", "name"),
    [
        ("0", '{"path": "x", "at": 1}', "seek"),
        ("0", '{"path": "x", "at": "1"}', "seek"),
        ("0", '{"path": "x"}', None),
        ("0", '{"s": 1.5}', "wait"),
        ("0", '{"s": true}', "tick"),
        ("0", '{"s": null}', "tick"),
        ("0", '{"command": "ls"}', None),
        ("xexecx", '{"command": "ls"}', "exec"),
        ("exec or bash", '{"command": "ls"}', None),
        ("read or seek", '{"path": "x", "at": 1}', "seek"),
        ("read or wait", '{"path": "x"}', "read"),
        ("read or wait", '{"command": "ls"}', None),
        ("0", "{}", "stop"),
        ("0", '{"other": 1}', None),
        ("0", "[]", None),
        ("0", '"read"', None),
        ("0", '{"path": ', None),
        ("0", "[" * 100_000, None),
        ("0", '{"s": ' + "1" * 5000 + "}", None),
        ("0", '{"path": "x", "at": 1, "more": 2}', "seek"),
        ("0", '{"s": true, "more": 2}', "tick"),
        ("0", '{"path": "x", "more": 2}', None),
        ("0", '{"at": 1}', None),
    ],
)
def test_arguments_tell_the_tool_if_they_fit_one(header: str, arguments: str, name: str | None) -> None:
    caller = read_header(header, TOOLS)
    assert caller.name is None
    assert caller.by_arguments(arguments) == name


def test_a_schema_that_takes_no_more_keys_fits_none_that_it_does_not_name() -> None:
    tools = {"a": schema("x", x="string") | {"additionalProperties": False}, "b": schema("y", y="string")}
    assert read_header("0", tools).by_arguments('{"x": "1", "z": 2}') is None
    assert read_header("0", tools).by_arguments('{"y": "1", "z": 2}') == "b"


@pytest.mark.parametrize(
    ("value", "name"), [('"on"', "text"), ("5", "number"), ("null", "text"), ("[]", None), ('"off"', "off")]
)
def test_a_type_may_be_one_of_several_or_a_single_value(value: str, name: str | None) -> None:
    of = {
        "text": {"anyOf": [{"type": "string", "enum": ["on"]}, {"type": "null"}]},
        "number": {"oneOf": [{"type": "integer"}, {"type": "number"}]},
        "off": {"const": "off"},
    }
    tools = {tool: {"properties": {"x": parameter}} for tool, parameter in of.items()}
    assert read_header("0", tools).by_arguments(f'{{"x": {value}}}') == name


def test_odd_schemas_do_no_harm() -> None:
    odd: dict[str, Any] = {
        "a": {"properties": [], "required": "x"},
        "b": {"properties": {"k": True}, "required": [1, None]},
        "c": {"properties": {"k": {"type": "enum", "enum": ["v"]}}},
        "d": {"properties": {"k": {"type": 5, "enum": ["w"]}}},
    }
    assert read_header("0", odd).by_arguments('{"k": "u"}') == "b"
    assert read_header("b or d", odd).by_arguments('{"k": "w"}') is None
    assert read_header("c or d", odd).by_arguments('{"k": "w"}') == "d"
