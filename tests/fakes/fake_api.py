"""A fleet's HTTP side as client commands see it: models, health, status, and chats whose answers a test has chosen."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORKER = {
    "role": "expert", "seat": "expert-0", "pid": 7, "node": "n", "state": "ready", "epoch": "1.2", "numerics": "a",
    "experts": 12, "bytes": 34, "tokens": 56, "address": "h:1", "metrics": {"x": 1.0},
}  # fmt: skip


class Api(BaseHTTPRequestHandler):
    """Answers a chat by its last message: see ``deltas_for``; by default with its number of messages, after thinking."""

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
        self.server.bodies.append(body)  # type: ignore[attr-defined]
        if body["model"] != "tiny":
            self.reply(404, json.dumps({"error": {"message": "no model of that name"}}))
            return
        frames = [": keep-alive", *(f"data: {json.dumps(event)}" for event in events_for(body))]
        if body["messages"][-1]["content"] != "vanish":
            frames.append("data: [DONE]")
        self.reply(200, "\n\n".join(frames) + "\n\n")

    def reply(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


def events_for(body: dict[str, Any]) -> list[dict[str, Any]]:
    last = body["messages"][-1]["content"]
    deltas: list[dict[str, Any]] = [{"role": "assistant"}, {"reasoning_content": "hm"}]
    finish: str | None = "stop"
    if last == "call":
        finish = "tool_calls"
        deltas += [call(0, "c0", "add", '{"a"'), call(1, "c1", "now", "{}"), call(0, None, None, ": 1}")]
    else:
        deltas.append({"content": f"{len(body['messages'])} messages"})
    finish = {"cut": "length", "odd": "invalid_tool_call", "vanish": None}.get(last, finish)
    events: list[dict[str, Any]] = [{"choices": [{"delta": delta}]} for delta in deltas]
    if last == "break":
        return [*events, {"error": {"message": "a worker died"}}]
    events.append({"choices": [{"delta": {}, "finish_reason": finish}]})
    if body.get("stream_options", {}).get("include_usage"):
        events.append({"choices": [], "usage": {"completion_tokens": 3}})
    return events


def call(index: int, identity: str | None, name: str | None, arguments: str) -> dict[str, Any]:
    return {"tool_calls": [{"index": index, "id": identity, "function": {"name": name, "arguments": arguments}}]}


class FakeApi:
    def __init__(self, server: ThreadingHTTPServer) -> None:
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        self.bodies: list[dict[str, Any]] = server.bodies  # type: ignore[attr-defined]


@contextmanager
def fake_api() -> Iterator[FakeApi]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    server.bodies = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield FakeApi(server)
    server.shutdown()
    server.server_close()
