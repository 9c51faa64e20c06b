"""`expertfleet scale --statefulset` with a kubectl that keeps one StatefulSet in a file, and a gateway that follows it."""

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from expertfleet.cluster.__main__ import main

KUBECTL = """#!{python}
import json, pathlib, sys
folder = pathlib.Path({folder!r})
with (folder / "asked").open("a") as asked:
    asked.write(json.dumps(sys.argv[1:]) + "\\n")
if "missing" in sys.argv:
    sys.exit('Warning: old\\nError from server (NotFound): statefulsets.apps "missing" not found')
kept = folder / "statefulset.json"
found = json.loads(kept.read_text())
if sys.argv[1] == "get":
    print(json.dumps(found))
else:
    found["spec"]["replicas"] = int(sys.argv[4].partition("=")[2])
    kept.write_text(json.dumps(found))
    print("statefulset.apps/" + sys.argv[3] + " scaled")
"""


class Cluster:
    """Three pods of a group whose first seat is 100, beside one shard of another group. Two of all four hold the model."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kept = folder / "statefulset.json"
        self.write("expert", 100, 3)
        self.stands_still = False
        self.questions: list[list[str]] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def write(self, role: str, first: int, replicas: int) -> None:
        spec = {"replicas": replicas} | ({"ordinals": {"start": first}} if first else {})
        labels = {"app.kubernetes.io/component": role}
        self.kept.write_text(json.dumps({"metadata": {"name": "fleet-expert", "labels": labels}, "spec": spec}))

    def asked(self) -> list[list[str]]:
        file = self.folder / "asked"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def scaled(self) -> list[list[str]]:
        return [words for words in self.asked() if words[0] == "scale"]

    def status(self) -> dict[str, Any]:
        count = 3 if self.stands_still else json.loads(self.kept.read_text())["spec"]["replicas"]
        seats = ["expert-0", "attention-0", *(f"expert-{100 + number}" for number in range(count))]
        workers = [{"seat": seat, "state": "ready", "wanted": True} for seat in seats]
        return {"workers": workers, "settled": True, "coverage": 0.5}

    def without(self, seats: list[str]) -> tuple[int, dict[str, Any]]:
        self.questions.append(seats)
        if len(seats) <= 2:
            return 200, {}
        return 400, {"error": {"message": "without some: too few"}}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        cluster = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = urlsplit(self.path)
                if asked.path == "/scale":
                    code, body = cluster.without(parse_qs(asked.query)["without"])
                else:
                    code, body = 200, cluster.status() if asked.path == "/status" else {}
                told = json.dumps(body).encode()
                self.send_response(code)
                self.send_header("content-length", str(len(told)))
                self.end_headers()
                self.wfile.write(told)

            def log_message(self, *_: object) -> None:
                pass

        return Handler


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(KUBECTL.format(python=sys.executable, folder=str(tmp_path)))
    kubectl.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    made = Cluster(tmp_path)
    yield made
    made.server.shutdown()
    made.server.server_close()


def scale(cluster: Cluster, *words: str, name: str = "fleet-expert") -> int:
    return main(["scale", "--statefulset", name, "--url", cluster.url, *words])


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    told = capsys.readouterr().err
    assert told.startswith("expertfleet: error: ")
    assert told.count("\n") == 1
    return told.removeprefix("expertfleet: error: ").strip()


def test_more_pods_are_kubectls_to_make(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert scale(cluster, "--expert-shards", "5", "--namespace", "serving", "--wait-s", "5") == 0
    assert cluster.asked() == [
        ["get", "statefulset", "fleet-expert", "--output=json", "-n", "serving"],
        ["scale", "statefulset", "fleet-expert", "--replicas=5", "-n", "serving"],
    ]
    assert not cluster.questions, "more always fit"
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "statefulset.apps/fleet-expert scaled",
        "done: 7 workers, 50 % of the experts survive the loss of any node",
    ]


def test_fewer_pods_are_asked_of_the_fleet_by_the_seats_that_would_go(cluster: Cluster) -> None:
    assert scale(cluster, "--expert-shards", "1", "--wait-s", "5") == 0
    assert cluster.questions == [["expert-101", "expert-102"]]
    assert cluster.scaled() == [["scale", "statefulset", "fleet-expert", "--replicas=1"]]


def test_too_few_are_refused_with_the_number_that_does(
    cluster: Cluster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.write("expert", 100, 7)
    everybody = {"workers": [{"seat": f"expert-{100 + n}", "state": "ready", "wanted": True} for n in range(7)]}
    monkeypatch.setattr(cluster, "status", lambda: everybody)
    assert scale(cluster, "--expert-shards", "2") == 1
    assert error_of(capsys) == ("--expert-shards: 2 are too few for fleet-expert, 5 would do (without some: too few)")
    assert not cluster.scaled()
    assert scale(cluster, "--expert-shards", "5") == 0


def test_a_seat_that_the_fleet_does_not_know_is_not_asked_about(cluster: Cluster) -> None:
    cluster.write("expert", 100, 4)
    cluster.stands_still = True
    assert scale(cluster, "--expert-shards", "3") == 0
    assert not cluster.questions


def test_attention_workers_hold_no_experts(cluster: Cluster) -> None:
    cluster.write("attention", 0, 4)
    assert scale(cluster, "--attention-workers", "1") == 0
    assert not cluster.questions
    assert len(cluster.scaled()) == 1


def test_waiting_ends(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.stands_still = True
    assert scale(cluster, "--expert-shards", "4", "--wait-s", "0.5") == 1
    assert error_of(capsys) == "not done after 0.5 s, and still under way; see expertfleet status"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--expert-shards", "0"), "--expert-shards: 0 is not within 1 to 100, the seats of a group"),
        (("--expert-shards", "101"), "--expert-shards: 101 is not within 1 to 100, the seats of a group"),
        (("--attention-workers", "2"), "--statefulset: fleet-expert is expert's by its label"),
        (("--expert-shards", "2", "--attention-workers", "2"), "--statefulset: is of one group of pods"),
        (("--expert-shards", "2", "--replicas", "2"), "--statefulset: is of one group of pods"),
        (("--replicas", "2"), "--statefulset: is of one group of pods"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    cluster: Cluster, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert scale(cluster, *words) == 1
    assert error_of(capsys).startswith(message)
    assert not cluster.scaled()


def test_what_kubectl_refuses_is_said_in_its_words(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert scale(cluster, "--expert-shards", "4", name="missing") == 1
    told = error_of(capsys)
    assert (
        told == 'kubectl get statefulset missing: Error from server (NotFound): statefulsets.apps "missing" not found'
    )


def test_without_kubectl_that_is_said(
    cluster: Cluster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert scale(cluster, "--expert-shards", "4") == 1
    assert error_of(capsys).startswith("--statefulset: kubectl is not on PATH")


def test_a_namespace_alone_is_no_wish(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scale", "--namespace", "serving", "--expert-shards", "4", "--url", cluster.url]) == 1
    assert error_of(capsys) == "--namespace: serving is given without --statefulset"
