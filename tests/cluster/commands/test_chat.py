import io
import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_api import FakeApi, fake_api
from until import until

from expertfleet.cluster.__main__ import main
from expertfleet.cluster.commands.chat import Chat, read_tools
from expertfleet.cluster.commands.chat_client import ChatClient
from expertfleet.cluster.errors import ClusterError

_WHERE = b"\x1b[6n"  # a terminal answers with where its cursor is
TOOLS = [{"type": "function", "function": {"name": "add"}}, {"type": "function", "function": {"name": "now"}}]


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with fake_api() as api:
        yield api


class Terminal:
    """Types ``lines``, each an answer to a prompt; an exception among them is raised."""

    def __init__(self, api: FakeApi, *lines: str | BaseException, model: str = "tiny", **settings: Any) -> None:
        self.out, self.aside = io.StringIO(), io.StringIO()
        self.prompts: list[str] = []
        self._lines = iter(lines)
        self.chat = Chat(ChatClient(api.url), model, self.out, self.aside, **settings)
        self.chat.converse(self.read)

    def read(self, prompt: str) -> str:
        self.prompts.append(prompt)
        line = next(self._lines, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line


def test_turns_build_on_each_other_until_exit(api: FakeApi) -> None:
    terminal = Terminal(api, "hello", " ", "again", "/exit", "never")
    assert terminal.out.getvalue() == "1 messages\n3 messages\n"
    assert [len(body["messages"]) for body in api.bodies] == [1, 3]


def test_the_banner_names_model_address_and_the_way_out(api: FakeApi) -> None:
    terminal = Terminal(api)
    assert terminal.aside.getvalue() == f"tiny at {api.url}; /help lists commands, /exit or Ctrl-D leaves\n"


def test_thinking_is_sent_back_as_it_came(api: FakeApi) -> None:
    Terminal(api, "hello", "again")
    assert api.bodies[1]["messages"][1] == {"role": "assistant", "content": "1 messages", "reasoning_content": "hm"}


def test_ctrl_c_at_the_prompt_drops_the_line_and_goes_on(api: FakeApi) -> None:
    terminal = Terminal(api, KeyboardInterrupt(), "hello")
    assert terminal.out.getvalue() == "1 messages\n"


def test_clear_forgets_the_conversation_and_keeps_the_system_message(api: FakeApi) -> None:
    Terminal(api, "/system be brief", "hello", "/clear", "again")
    assert [message["role"] for message in api.bodies[1]["messages"]] == ["system", "user"]


def test_the_system_message_is_shown_set_and_removed(api: FakeApi) -> None:
    terminal = Terminal(api, "/system", "/system be brief", "one", "/system -", "two", system="be kind")
    assert "system: be kind\nsystem: be brief\n" in terminal.aside.getvalue()
    assert api.bodies[0]["messages"][0] == {"role": "system", "content": "be brief"}
    assert [message["role"] for message in api.bodies[1]["messages"]] == ["user", "assistant", "user"]


def test_help_lists_every_command_and_an_unknown_one_says_so(api: FakeApi) -> None:
    terminal = Terminal(api, "/help", "/hepl", "hello")
    shown = terminal.aside.getvalue()
    assert all(f"{name} " in shown for name in ("/help", "/exit", "/clear", "/system", "/tools", "/save"))
    assert "error: /hepl: no such command; /help lists them\n" in shown
    assert terminal.out.getvalue() == "1 messages\n"


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ("cut", "cut: the answer reached the most tokens it may have (--max-tokens)"),
        ("odd", "the model wrote a tool call that names no tool"),
    ],
)
def test_an_answer_that_did_not_end_by_itself_says_so(api: FakeApi, question: str, said: str) -> None:
    assert said in Terminal(api, question).aside.getvalue()


def test_each_answer_is_followed_by_its_speed(api: FakeApi) -> None:
    shown = Terminal(api, "hello").aside.getvalue()
    assert "3 tokens, the first after " in shown
    assert shown.endswith(" tokens/s\n")


@pytest.mark.parametrize(
    ("question", "error"),
    [
        ("break", "error: the answer broke off: a worker died\n"),
        ("vanish", "error: the answer broke off: the connection ended before the answer did\n"),
    ],
)
def test_an_error_does_not_end_the_conversation_and_leaves_no_turn(api: FakeApi, question: str, error: str) -> None:
    terminal = Terminal(api, question, "hello")
    assert error in terminal.aside.getvalue()
    assert len(api.bodies[1]["messages"]) == 1


def test_a_refusal_is_the_api_s_own_message(api: FakeApi) -> None:
    assert "error: no model of that name\n" in Terminal(api, "hello", model="other").aside.getvalue()


def test_calls_are_shown_and_their_results_asked_for(api: FakeApi, tmp_path: Path) -> None:
    file = tmp_path / "tools.json"
    file.write_text(json.dumps(TOOLS))
    terminal = Terminal(api, f"/tools {file}", "call", "three", "noon", "/tools -", "hello")
    assert terminal.prompts[2:4] == ["result of add> ", "result of now> "]
    assert 'add({"a": 1})\nnow({})\n4 messages\n' in terminal.out.getvalue()
    assert api.bodies[0]["tools"] == TOOLS
    assert [call["id"] for call in api.bodies[1]["messages"][1]["tool_calls"]] == ["c0", "c1"]
    assert api.bodies[1]["messages"][2:] == [
        {"role": "tool", "tool_call_id": "c0", "content": "three"},
        {"role": "tool", "tool_call_id": "c1", "content": "noon"},
    ]
    assert "tools" not in api.bodies[2]


def test_a_call_without_a_result_takes_the_question_back(api: FakeApi) -> None:
    terminal = Terminal(api, "call", KeyboardInterrupt(), "hello", tools=TOOLS)
    assert len(api.bodies[1]["messages"]) == 1
    assert "the question is taken back" in terminal.aside.getvalue()


@pytest.mark.parametrize("text", ["{", "{}", "[1]", '[{"function": {}}]'])
def test_a_file_that_holds_no_tools_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "tools.json"
    file.write_text(text)
    with pytest.raises(ClusterError, match=r"/tools: .*tools\.json is not "):
        read_tools(file)
    with pytest.raises(ClusterError, match="absent cannot be read: No such file"):
        read_tools(tmp_path / "absent")


def test_save_writes_messages_that_the_api_takes(api: FakeApi, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    Terminal(api, "hello", f"/save {file}", f"/save {tmp_path}/no/file", system="be brief")
    assert [message["role"] for message in json.loads(file.read_text())] == ["system", "user", "assistant"]


def test_options_go_with_every_request(api: FakeApi) -> None:
    Terminal(api, "hello", options={"temperature": 0.0, "max_tokens": 7})
    assert (api.bodies[0]["temperature"], api.bodies[0]["max_tokens"]) == (0.0, 7)


def test_thinking_is_dimmed_and_the_answer_is_not(api: FakeApi) -> None:
    out = io.StringIO()
    Chat(ChatClient(api.url), "tiny", out, out, dims=True).turn("hello")
    assert out.getvalue().startswith("\033[2mhm\033[0m\033[2m\n\033[0m1 messages\n\033[2m3 tokens")


def test_ctrl_c_during_an_answer_keeps_what_came(api: FakeApi) -> None:
    class Interrupts(io.StringIO):
        def write(self, text: str) -> int:
            if text == "1 messages":
                raise KeyboardInterrupt
            return super().write(text)

    chat = Chat(ChatClient(api.url), "tiny", Interrupts(), io.StringIO())
    chat.turn("hello")
    assert chat.messages[1] == {"role": "assistant", "content": "1 messages", "reasoning_content": "hm"}


def test_one_question_prints_the_answer_alone(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "--url", api.url, "--system", "be brief", "--temperature", "0", "hello"]) == 0
    out, err = capsys.readouterr()
    assert out == "2 messages\n"
    assert err.startswith("hm\n3 tokens")
    assert api.bodies[0]["temperature"] == 0


def test_standard_input_is_one_question(
    api: FakeApi, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("two\nlines\n"))
    assert main(["chat", "--url", api.url]) == 0
    assert api.bodies[0]["messages"][0]["content"] == "two\nlines\n"
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert main(["chat", "--url", api.url]) == 1
    assert "no question: give it as an argument or on standard input" in capsys.readouterr().err


def test_an_error_ends_one_question_with_status_one(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "--url", api.url, "break"]) == 1
    assert capsys.readouterr().err.endswith("expertfleet: error: the answer broke off: a worker died\n")
    assert main(["chat", "--url", "http://127.0.0.1:9", "hello"]) == 1
    assert "--url: http://127.0.0.1:9 does not answer" in capsys.readouterr().err


def test_a_terminal_edits_lines_and_remembers_them(api: FakeApi) -> None:
    """Typed into a pseudo-terminal: a mended line, and the one before once more by the arrow key."""
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "expertfleet.cluster", "chat", "--url", api.url]
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, close_fds=True) as process:
        os.close(slave)
        _expect(master, "you>")
        os.write(master, b"hellx\x7fo\r")
        _expect(master, "tokens")
        os.write(master, b"\x1b[A\r")
        until(lambda: len(api.bodies) == 2, 20)
        os.write(master, b"\x04")
        _drain(master)
        assert process.wait(20) == 0
    os.close(master)
    assert [body["messages"][-1]["content"] for body in api.bodies] == ["hello", "hello"]


def _expect(master: int, text: str) -> None:
    seen, give_up = b"", time.monotonic() + 30
    while text.encode() not in seen:
        assert select.select([master], [], [], give_up - time.monotonic())[0], seen
        seen += os.read(master, 4096)
        if _WHERE in seen:
            os.write(master, b"\x1b[1;1R")
            seen = seen.replace(_WHERE, b"")


def _drain(master: int) -> None:
    """Until the other end is closed."""
    try:
        while os.read(master, 4096):
            pass
    except OSError:
        return
