"""A worker actor on a server that only notes what it is started with."""

import importlib
from pathlib import Path
from typing import Any

import pytest
from until import until

from expertfleet.cluster.ray import worker_actor
from expertfleet.cluster.ray.worker_actor import WORKERS_DIR, WorkerActor, failure_file, failures, settings_file
from expertfleet.expert_workers.config import ExpertConfig
from expertfleet.settings.reader import write_file


class NotedServer:
    started: "list[NotedServer]"

    def __init__(self, config: Any, offer: str) -> None:
        self.config, self.offer, self.failure = config, offer, ""

    def start(self) -> None:
        if self.config.threads == 13:
            raise MemoryError("no memory\nfor 13 threads")
        self.started.append(self)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    NotedServer.started = []
    monkeypatch.setenv(WORKERS_DIR, str(tmp_path))
    monkeypatch.setattr(worker_actor, "_SERVERS", {"expert": (__name__, "NotedServer")})
    return tmp_path


def write(folder: Path, name: str, threads: int) -> None:
    config = ExpertConfig(model=folder, seat="expert-0", controller="h:1", threads=threads)
    write_file(config, settings_file(folder, name))


def test_a_seat_with_a_file_of_its_own_is_served_by_it_and_any_other_by_its_roles(folder: Path) -> None:
    write(folder, "expert", 2)
    write(folder, "expert-0", 5)
    for seat in ("expert-0", "expert-7"):
        WorkerActor(seat, "key").ping()
    assert [(server.config.seat, server.config.threads, server.offer) for server in NotedServer.started] == [
        ("expert-0", 5, "key"),
        ("expert-7", 2, "key"),
    ]


def test_why_a_worker_cannot_start_is_one_line_for_its_node(folder: Path) -> None:
    write(folder, "expert-0", 13)
    with pytest.raises(MemoryError):
        WorkerActor("expert-0", "key")
    settings_file(folder, "expert-3").write_text("thread: 1")
    with pytest.raises(ValueError, match="expert-3"):
        WorkerActor("expert-3", "key")
    assert failures(folder).keys() == {"expert-0", "expert-3"}
    assert failures(folder)["expert-0"] == "no memory for 13 threads"


def test_why_a_worker_failed_after_its_start_is_told_as_well(folder: Path) -> None:
    write(folder, "expert-0", 1)
    WorkerActor("expert-0", "key")
    assert failures(folder) == {}
    (server,) = NotedServer.started
    server.failure = "FOREIGN_CHECKPOINT: not this fleet's"
    until(lambda: failure_file(folder, "expert-0").exists(), 5)
    assert failures(folder) == {"expert-0": "FOREIGN_CHECKPOINT: not this fleet's"}


@pytest.mark.parametrize(("module", "name"), worker_actor._SERVERS.values())
def test_every_role_has_a_server(module: str, name: str) -> None:
    assert callable(getattr(importlib.import_module(module, worker_actor.__package__), name))
