import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from expertfleet.cluster.commands.chat import Chat, first_model
from expertfleet.cluster.commands.status import fetch_status, render
from expertfleet.cluster.errors import ClusterError

WORKER = {
    "role": "expert", "seat": "expert-0", "pid": 7, "node": "n", "state": "ready", "epoch": "1.2", "numerics": "a",
    "experts": 12, "bytes": 34, "tokens": 56, "address": "h:1", "metrics": {"x": 1.0},
}  # fmt: skip


class Api(BaseHTTPRequestHandler):
    """Answers every chat with its own number of messages; thinks first."""

    def do_GET(self) -> None:
        port = self.server.server_address[1]
        pages: dict[str, Any] = {
            "/v1/models": {"data": [{"id": "tiny"}]},
            "/health": {"admin": f"http://127.0.0.1:{port}/admin"},
            "/admin/status": {"ready": False, "missing": "expert-1 lost", "workers": [WORKER]},
            "/admin/health": {},
        }
        self.reply(200 if self.path in pages else 404, json.dumps(pages.get(self.path, {})))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body["model"] != "tiny":
            self.reply(404, json.dumps({"error": {"message": "no model of that name"}}))
            return
        text = f"{len(body['messages'])} messages"
        deltas = [{"role": "assistant"}, {"reasoning_content": "hm"}, {"content": text}]
        events = [{"choices": [{"delta": delta}]} for delta in deltas]
        if body["messages"][-1]["content"] == "break":
            events.append({"error": {"message": "a worker died"}})
        frames = [": keep-alive", *(f"data: {json.dumps(event)}" for event in events), "data: [DONE]"]
        self.reply(200, "\n\n".join(frames) + "\n\n")

    def reply(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_turns_build_on_each_other_until_exit(url: str) -> None:
    out = io.StringIO()
    Chat(url, first_model(url, ""), out, dims=False).converse(iter(["hello\n", "\n", "again\n", "/exit\n", "never\n"]))
    assert out.getvalue() == "hm\n1 messages\nhm\n3 messages\n"


def test_clear_forgets_the_conversation(url: str) -> None:
    out = io.StringIO()
    Chat(url, "tiny", out, dims=False).converse(iter(["hello", "/clear", "again"]))
    assert out.getvalue().count("1 messages") == 2


def test_thinking_is_dimmed_and_the_answer_is_not(url: str) -> None:
    out = io.StringIO()
    Chat(url, "tiny", out, dims=True).turn("hello")
    assert out.getvalue() == "\033[2mhm\033[0m\n1 messages\n"


def test_errors_of_the_api_are_one_line(url: str) -> None:
    with pytest.raises(ClusterError, match="no model of that name"):
        Chat(url, "other", io.StringIO(), dims=False).turn("hello")
    with pytest.raises(ClusterError, match="the answer broke off: a worker died"):
        Chat(url, "tiny", io.StringIO(), dims=False).turn("break")
    with pytest.raises(ClusterError, match=r"--url: http://127.0.0.1:9 does not answer"):
        first_model("http://127.0.0.1:9", "")


@pytest.mark.parametrize("path", ["", "/", "/admin"])
def test_status_comes_from_either_port_with_exactly_its_fields(url: str, path: str) -> None:
    shown = json.loads(render(fetch_status(url + path), as_json=True))
    fields = ("role", "seat", "pid", "node", "state", "epoch", "numerics", "experts", "bytes", "tokens")
    assert shown == {"workers": [{field: WORKER[field] for field in fields}]}


def test_the_table_says_what_is_missing(url: str) -> None:
    lines = render(fetch_status(url), as_json=False).splitlines()
    assert lines[0].split() == [
        "role",
        "seat",
        "pid",
        "node",
        "state",
        "epoch",
        "numerics",
        "experts",
        "bytes",
        "tokens",
    ]
    assert lines[1].split() == ["expert", "expert-0", "7", "n", "ready", "1.2", "a", "12", "34", "56"]
    assert lines[2] == "not ready: expert-1 lost"


def test_the_table_says_who_is_quarantined_and_by_whom() -> None:
    workers = [WORKER | {"quarantined_by": ["attention-0", "attention-2"]}, WORKER | {"seat": "expert-1"}]
    text = render({"workers": workers, "ready": True, "coverage": 1.0, "settled": True}, as_json=False)
    (line,) = [line for line in text.splitlines() if "quarantined" in line]
    assert line.startswith("expert-0 is quarantined by attention-0, attention-2: ")
    assert line.endswith("expertfleet drain expert-0")


def test_the_table_says_why_fewer_copies_than_wanted_are_held() -> None:
    status = {"workers": [WORKER], "ready": True, "coverage": 1.0, "settled": True}
    without = render({**status, "shortfall": None}, as_json=False)
    assert (
        render({**status, "shortfall": "replicas: 4 are wanted"}, as_json=False) == f"{without}\nreplicas: 4 are wanted"
    )


def test_an_address_that_is_no_fleet_is_one_line(url: str) -> None:
    with pytest.raises(ClusterError, match="/nowhere/health answered with status 404; is it a fleet's address"):
        fetch_status(f"{url}/nowhere")
    with pytest.raises(ClusterError, match="is the fleet running there"):
        fetch_status("http://127.0.0.1:9")
