"""Fixtures for every room: generated checkpoints, the logits oracle, and plain-process fleets."""

import asyncio
import importlib.util
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import pytest
import trustme

from expertfleet.checkpoint.make_tiny import make_tiny
from expertfleet.kernels import native_lanes
from expertfleet.kernels.native_lanes import Calls
from expertfleet.proto.generated import generate_pb2, generate_pb2_grpc

TESTS = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--placements", type=int, default=0, help="place so many random small clusters (10000 take minutes)"
    )


def load_module(path: Path) -> ModuleType:
    """A helper file of the tests as a module; tests are no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def no_log_handler_stays() -> Iterator[None]:
    """A command that runs in this process sets up logging to the standard error of its test, which is closed after it."""
    before, level = list(logging.root.handlers), logging.root.level
    yield
    for handler in list(logging.root.handlers):
        if handler not in before and type(handler) is logging.StreamHandler:
            logging.root.removeHandler(handler)
    logging.root.setLevel(level)


@pytest.fixture(scope="session")
def oracle() -> ModuleType:
    """``oracle.load_oracle(directory, dtype)``."""
    return load_module(TESTS / "oracle.py")


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three MoE layers after a dense one, 64 experts, top-8."""
    directory = tmp_path_factory.mktemp("checkpoints") / "small"
    make_tiny(directory, seed=int.from_bytes(os.urandom(2)))
    return directory


@pytest.fixture(scope="session")
def calls() -> Calls:
    """The compiled calls of lanes."""
    found = native_lanes.calls()
    if found is None:
        pytest.skip("the compiled library was not built")
    return found


@pytest.fixture
def tls_dir(tmp_path: Path) -> Path:
    """For ``--tls-dir``."""
    return certify(tmp_path / "tls", trustme.CA())


def certify(folder: Path, authority: trustme.CA, name: str = "expertfleet") -> Path:
    folder.mkdir(exist_ok=True)
    issued = authority.issue_cert(name)
    authority.cert_pem.write_to_path(str(folder / "ca.crt"))
    issued.private_key_pem.write_to_path(str(folder / "tls.key"))
    (folder / "tls.crt").write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
    return folder


@pytest.fixture(name="certify")
def give_certify() -> Callable[..., Path]:
    """``certify(folder, authority, name)`` fills a folder for ``--tls-dir``."""
    return certify


class Process:
    """A role as a plain process; its output goes to a file."""

    def __init__(self, role: str, log: Path, *flags: str) -> None:
        self.log = log
        environ = {name: value for name, value in os.environ.items() if not name.startswith("EXPERTFLEET_")}
        environ["PYTHONFAULTHANDLER"] = "1"
        with log.open("wb") as output:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", f"expertfleet.{role}", *flags],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"},
                start_new_session=True,
            )

    def address(self, timeout_s: float = 60) -> str:
        """Where it listens; waits for the line that says so."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for line in self.log.read_text(errors="replace").splitlines():
                if line.startswith("listening "):
                    return line.removeprefix("listening ")
            assert self.popen.poll() is None, self.log.read_text(errors="replace")
            time.sleep(0.05)
        raise TimeoutError(self.log.read_text(errors="replace"))

    def ready_address(self) -> str:
        """The same of an attention worker that serves an epoch."""
        address = self.address()
        asyncio.run(_wait_ready(address))
        return address

    def stop(self) -> int:
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
            self.popen.send_signal(signal.SIGCONT)  # a test that failed may have left it stopped
        try:
            return self.popen.wait(30)
        except subprocess.TimeoutExpired:
            self.popen.send_signal(signal.SIGABRT)  # so that its log says where each thread is
            self.popen.wait()
            pytest.fail(f"it did not end: {self.log.read_text(errors='replace')}")


async def _wait_ready(address: str) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = generate_pb2_grpc.AttentionWorkerStub(channel)
        for _ in range(600):
            report = await stub.Describe(generate_pb2.DescribeWorkerRequest(), wait_for_ready=True)
            if report.state == "ready" and report.epoch.counter:
                return
            await asyncio.sleep(0.1)
    pytest.fail("the attention worker never became ready")


@pytest.fixture
def run_forward() -> Callable[[Any, Coroutine[Any, None, Any]], Any]:
    """``run_forward(server, coroutine)``: what a forward pass of an attention worker gives, run on its engine's thread."""

    def run(server: Any, forward: Coroutine[Any, None, Any]) -> Any:
        done: Future[Any] = Future()

        def step() -> None:
            try:
                forward.send(None).when_done(lambda: server.engine.reactor.post(step))
            except StopIteration as result:
                done.set_result(result.value)
            except Exception as error:  # noqa: BLE001 - whatever it is, the test shall see it
                done.set_exception(error)

        server.engine.reactor.post(step)
        return done.result(60)

    return run


Start = Callable[..., Process]


def _starter(folder: Path) -> Iterator[Start]:
    running: list[Process] = []

    def start(role: str, *flags: object) -> Process:
        running.append(Process(role, folder / f"{len(running)}-{role}.log", *map(str, flags)))
        return running[-1]

    yield start
    for process in running:
        if process.popen.poll() is None:
            process.popen.send_signal(signal.SIGTERM)
    for process in running:
        process.stop()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """``start(role, *flags)``; whatever it started is ended with the test."""
    yield from _starter(tmp_path)


@pytest.fixture(scope="module")
def start_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """The same for a whole file of tests."""
    yield from _starter(tmp_path_factory.mktemp("processes"))
