"""``expertfleet chat``: a conversation in the terminal, thinking dimmed, or one question and its answer.

Knows nothing of the fleet but its API. A question is an argument, or all of standard input where that is not a terminal; else every
line is a turn. A line that begins with ``/`` is a command. Ctrl-C ends an answer. An error ends a single question, never a conversation.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from ..errors import ClusterError
from .chat_client import Answer, ChatClient

_DIM, _PLAIN = "\033[2m", "\033[0m"
_CUT = {
    "length": "cut: the answer reached the most tokens it may have (--max-tokens); ask the model to go on",
    "invalid_tool_call": "the model wrote a tool call that names no tool; it is shown as text",
}
HELP = """\
/help            these commands
/exit            ends the conversation, as Ctrl-D does
/clear           forgets the conversation; the system message and tools stay
/system [TEXT]   shows or sets the system message; /system - removes it
/tools [FILE]    shows or reads the tools that the model may call, a JSON list as in the API; /tools - removes them
/save FILE       writes the conversation to a file, as JSON messages
Ctrl-C ends an answer; what arrived stays in the conversation."""


@dataclass
class Chat:
    """One conversation with one model."""

    client: ChatClient
    model: str
    out: TextIO
    aside: (
        TextIO  # where thinking and notes go: the same terminal, or standard error beside an answer that goes elsewhere
    )
    dims: bool = False
    system: str = ""
    options: dict[str, Any] = field(default_factory=dict)  # further fields of each request
    messages: list[dict[str, Any]] = field(default_factory=list)
    tools: list[dict[str, Any]] = field(default_factory=list)

    def converse(self, read: Callable[[str], str]) -> None:
        """``read`` takes a prompt and returns a line; EOFError ends the conversation, KeyboardInterrupt drops a line."""
        self.note(f"{self.model} at {self.client.url}; /help lists commands, /exit or Ctrl-D leaves")
        while True:
            try:
                text = read("you> ").strip()
            except KeyboardInterrupt:
                self.note("/exit or Ctrl-D leaves")
                continue
            except EOFError:
                return
            if text == "/exit":
                return
            try:
                if text.startswith("/"):
                    name, _, rest = text.partition(" ")
                    self._command(name, rest)
                elif text:
                    self.turn(text, read)
            except ClusterError as error:
                self.note(f"error: {error}")

    def turn(self, text: str, read: Callable[[str], str] | None = None) -> None:
        """One question and its answer; they enter the conversation once the answer is there.

        ``read`` asks for the results of tool calls; without it the calls are shown and end the turn.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        while True:
            answer, is_whole = self._answer(messages)
            messages.append(answer.message)
            if not (answer.calls and is_whole and read is not None):
                break
            try:
                messages += [_result(call, read) for call in answer.calls]
            except (EOFError, KeyboardInterrupt):
                self.note("a call without a result: the question is taken back")
                return
        self.messages = messages

    def note(self, text: str) -> None:
        """A line beside the conversation."""
        self._write_aside(f"{text}\n")

    def _answer(self, messages: list[dict[str, Any]]) -> tuple[Answer, bool]:
        """The answer, and whether the client let it come to its end."""
        answer, began, first_at = Answer(), time.monotonic(), None
        try:
            for kind, text in self._shown(self.client.ask(self._body(messages), answer)):
                first_at = first_at or time.monotonic()
                (self._write if kind == "content" else self._write_aside)(text)
        except KeyboardInterrupt:
            self._write("\n")
            self.note("ended by Ctrl-C")
            return Answer(answer.reasoning, answer.content), False
        except ClusterError:
            if first_at is not None:
                self._write("\n")
            raise
        self._close(answer, began, first_at)
        return answer, True

    def _shown(self, pieces: Iterator[tuple[str, str]]) -> Iterator[tuple[str, str]]:
        """The pieces, with a line's end between thinking and answer."""
        last = ""
        for kind, text in pieces:
            if last == "reasoning" and kind == "content":
                yield "reasoning", "\n"
            last = kind
            yield kind, text

    def _close(self, answer: Answer, began: float, first_at: float | None) -> None:
        self._write("\n" if answer.content or answer.reasoning else "")
        for call in answer.calls:
            self._write(f"{call['function']['name']}({call['function']['arguments']})\n")
        if cut := _CUT.get(answer.finish_reason or ""):
            self.note(cut)
        if answer.num_tokens and first_at is not None:
            self.note(_speed(answer.num_tokens, first_at - began, time.monotonic() - first_at))

    def _body(self, messages: list[dict[str, Any]]) -> dict[str, Any]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        tools = {"tools": self.tools} if self.tools else {}
        return {"model": self.model, "messages": [*system, *messages], **self.options, **tools}

    def _command(self, name: str, rest: str) -> None:
        commands = {
            "/help": self._help,
            "/clear": self._clear,
            "/system": self._system,
            "/tools": self._tools,
            "/save": self._save,
        }
        if name not in commands:
            raise ClusterError(f"{name}: no such command; /help lists them")
        commands[name](rest.strip())

    def _help(self, rest: str) -> None:
        self.note(HELP)

    def _clear(self, rest: str) -> None:
        self.messages.clear()
        self.note("the conversation is forgotten")

    def _system(self, text: str) -> None:
        if text:
            self.system = "" if text == "-" else text
        self.note(f"system: {self.system}" if self.system else "no system message")

    def _tools(self, name: str) -> None:
        if name:
            self.tools = [] if name == "-" else read_tools(Path(name))
        names = ", ".join(tool["function"]["name"] for tool in self.tools)
        self.note(f"tools: {names}; you are asked for the result of each call" if names else "no tools")

    def _save(self, name: str) -> None:
        if not name:
            raise ClusterError("/save: give the file's name")
        messages = self._body(self.messages)["messages"]
        try:
            Path(name).write_text(json.dumps(messages, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise ClusterError(f"/save: {name} cannot be written: {error.strerror}") from error
        self.note(f"{len(messages)} messages in {name}")

    def _write_aside(self, text: str) -> None:
        self.aside.write(f"{_DIM}{text}{_PLAIN}" if self.dims else text)
        self.aside.flush()

    def _write(self, text: str) -> None:
        self.out.write(text)
        self.out.flush()


def read_tools(file: Path) -> list[dict[str, Any]]:
    """Tools as the API's ``tools`` field has them; raises ClusterError."""
    try:
        tools = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ClusterError(f"/tools: {file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ClusterError(f"/tools: {file} is not JSON: {error}") from error
    if not isinstance(tools, list) or not all(_is_tool(tool) for tool in tools):
        raise ClusterError(f"/tools: {file} is not a list of objects with a function that has a name")
    return tools


def _is_tool(tool: Any) -> bool:
    function = tool.get("function") if isinstance(tool, dict) else None
    return isinstance(function, dict) and isinstance(function.get("name"), str)


def _result(call: dict[str, Any], read: Callable[[str], str]) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call["id"], "content": read(f"result of {call['function']['name']}> ")}


def _speed(num_tokens: int, first_s: float, rest_s: float) -> str:
    rate = f", {(num_tokens - 1) / rest_s:.1f} tokens/s" if num_tokens > 1 and rest_s > 0 else ""
    return f"{num_tokens} tokens, the first after {first_s:.2f} s{rate}"


def line_editor() -> Callable[[str], str]:
    """Reads lines from a terminal, with editing and this conversation's history."""
    from prompt_toolkit import PromptSession

    session: PromptSession[str] = PromptSession()
    return session.prompt
