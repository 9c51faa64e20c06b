import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from until import until

from expertfleet.cluster.errors import ClusterError
from expertfleet.cluster.ray import process_reaper
from expertfleet.cluster.ray.launcher import Launcher, make_run_dir

# Leaves its parent's session, wipes its environment and ignores SIGTERM: a daemon at its most stubborn.
STUBBORN = """
import os, signal, sys, time
if os.fork():
    os._exit(0)
os.setsid()
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.environ.clear()
if len(sys.argv) < 2:
    os.execve(sys.executable, [sys.executable, "-c", "import time; time.sleep(600)", "x"], {})
time.sleep(600)
"""


@pytest.fixture
def launcher() -> Iterator[Launcher]:
    started = Launcher(make_run_dir())
    yield started
    started.end()


def test_orphans_in_sessions_of_their_own_are_found_and_killed(launcher: Launcher) -> None:
    starter = launcher.spawn([sys.executable, "-c", STUBBORN], {}, "stubborn")
    until(lambda: starter in launcher.exited, 10)
    orphans = until(lambda: process_reaper.descendants(launcher.guard_pid), 10)
    assert starter not in orphans
    assert set(launcher.end()) == set(orphans)
    assert not any(Path("/proc", str(pid)).exists() for pid in orphans)
    assert not launcher.run_dir.exists()


def test_the_guard_ends_everything_when_its_owner_is_killed() -> None:
    run_dir = make_run_dir()
    owner = subprocess.Popen(
        [sys.executable, "-c", _OWNER, str(run_dir)], stdout=subprocess.PIPE, text=True
    )  # fmt: skip
    assert owner.stdout is not None
    pids = json.loads(owner.stdout.readline())
    assert all(Path("/proc", str(pid)).exists() for pid in pids)
    owner.kill()
    owner.wait()
    owner.stdout.close()
    until(lambda: not any(Path("/proc", str(pid)).exists() for pid in pids), 10)
    until(lambda: not run_dir.exists(), 10)


_OWNER = """
import json, sys, time
from pathlib import Path
from expertfleet.cluster.ray.launcher import Launcher
launcher = Launcher(Path(sys.argv[1]))
pids = [launcher.spawn([sys.executable, "-c", "import time; time.sleep(600)"], {}, "sleeper") for _ in range(3)]
print(json.dumps([launcher.guard_pid, *pids]), flush=True)
time.sleep(600)
"""


def test_exits_are_reported_with_their_status(launcher: Launcher) -> None:
    three = launcher.spawn([sys.executable, "-c", "raise SystemExit(3)"], {}, "three")
    killed = launcher.spawn([sys.executable, "-c", "import time; time.sleep(600)"], {}, "killed")
    until(lambda: launcher.exited.get(three) == 3, 10)
    os.kill(killed, signal.SIGKILL)
    until(lambda: launcher.exited.get(killed) == -signal.SIGKILL, 10)


def test_children_do_not_inherit_the_guards_deafness(launcher: Launcher) -> None:
    pid = launcher.spawn([sys.executable, "-c", "import time; time.sleep(600)"], {}, "sleeper")
    time.sleep(0.3)
    launcher.terminate(pid)
    until(lambda: launcher.exited.get(pid) == -signal.SIGTERM, 10)


def test_output_goes_to_the_log(launcher: Launcher) -> None:
    pid = launcher.spawn([sys.executable, "-c", "print('one\\n\\ntwo')"], {}, "speaker")
    until(lambda: pid in launcher.exited, 10)
    assert launcher.last_lines("speaker", 2) == ["one", "two"]
    assert launcher.last_lines("nobody") == []


def test_a_missing_program_is_an_error_and_the_guard_lives_on(launcher: Launcher) -> None:
    with pytest.raises(ClusterError, match="/no/such/program: No such file"):
        launcher.spawn(["/no/such/program"], {}, "none")
    launcher.check()
    assert launcher.spawn([sys.executable, "-c", ""], {}, "fine")


def test_a_dead_guard_is_noticed_and_its_work_is_done_for_it(launcher: Launcher) -> None:
    sleeper = launcher.spawn([sys.executable, "-c", "import time; time.sleep(600)"], {}, "sleeper")
    os.kill(launcher.guard_pid, signal.SIGKILL)
    until(lambda: launcher._guard.poll() is not None, 10)
    with pytest.raises(ClusterError, match="was ended from outside"):
        launcher.check()
    with pytest.raises(ClusterError, match=r"guard process \(pid \d+\) is gone"):
        launcher.spawn([sys.executable, "-c", ""], {}, "none")
    assert launcher.end() == [sleeper]
    assert not launcher.run_dir.exists()


def test_a_long_temp_folder_is_not_used_for_sockets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 60)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    run_dir = make_run_dir()
    try:
        assert run_dir.parent == Path("/tmp")
    finally:
        (run_dir / "logs").rmdir()
        run_dir.rmdir()
