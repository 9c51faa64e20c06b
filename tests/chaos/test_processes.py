import asyncio
import os
import subprocess
import tempfile

import pytest
from harness import processes
from harness.processes import Process, read_process, read_processes


def own() -> Process:
    found = read_process(os.getpid())
    assert found is not None
    return found


def test_files_memory_and_what_was_read_are_the_kernels() -> None:
    before = own()
    with tempfile.TemporaryFile() as file:
        file.write(b"x" * (3 << 20))
        file.seek(0)
        kept = file.read()
        after = own()
    assert before.identity == after.identity
    assert after.num_fds == before.num_fds + 1
    assert after.rss_kib - before.rss_kib > (2 << 10)
    assert 3 << 20 <= after.read_bytes - before.read_bytes < 4 << 20
    assert len(kept) == 3 << 20
    assert own().num_fds == before.num_fds


def test_one_that_ends_is_left_out_and_of_the_rest_the_least_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_PAUSE_S", 0.2)
    process = subprocess.Popen(["sleep", "0.5"])

    async def read() -> dict[str, Process]:
        with tempfile.TemporaryFile():
            reading = asyncio.create_task(read_processes({"ends": process.pid, "stays": os.getpid()}))
            await asyncio.sleep(0.3)
        await asyncio.to_thread(process.wait)
        return await reading

    found = asyncio.run(read())
    assert found.keys() == {"stays"}
    assert read_process(process.pid) is None


def test_another_process_with_the_same_pid_is_not_the_one_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_PAUSE_S", 0.0)
    answers = iter(
        [Process(7, 1, 9, 50, 0), Process(7, 1, 5, 60, 1), Process(7, 1, 6, 40, 2)] + [Process(7, 1, 8, 70, 3)] * 2
    )
    monkeypatch.setattr(processes, "read_process", lambda pid: next(answers))
    assert asyncio.run(read_processes({"seat": 7})) == {"seat": Process(7, 1, 5, 40, 3)}
    answers = iter([Process(7, 1, 9, 50, 0), Process(7, 2, 5, 60, 1)])
    assert asyncio.run(read_processes({"seat": 7})) == {}
