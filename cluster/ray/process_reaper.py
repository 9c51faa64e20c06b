"""The guard: a tiny process that starts every other process of one run and outlives ``serve`` only to end them.

Knows nothing of what it starts, and imports the standard library alone. Linux makes it the parent of every orphan below
it (sub-reaper), so nothing that was started through it can get away, whatever session, title or environment it gives
itself. 1. ``serve`` sends JSON lines on stdin: ``{"spawn": argv, "env": {...}, "log": path, "warns_here": false}``; 2. the guard answers
``{"pid": n}`` and reports ends as ``{"exited": pid, "status": n}``; 3. on ``{"end": true}``, or when stdin closes because
``serve`` is gone, it kills all that is left, removes the run's folder, says ``{"killed": [pids]}`` and exits.
"""

import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_PR_SET_CHILD_SUBREAPER = 36
_POLL_S = 0.1
_SWEEP_S = 0.05


def become_subreaper() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def descendants(root: int) -> list[int]:
    """Every process below ``root``, zombies left out."""
    return [pid for pid in _below(root) if alive(pid)]


def alive(pid: int) -> bool:
    """Whether the process is there and no zombie."""
    try:
        return _stat(str(pid))[0] not in "ZX"
    except OSError:
        return False


def _below(root: int) -> list[int]:
    parents = dict(_processes())
    below: set[int] = {root}
    grew = True
    while grew:
        found = {pid for pid, parent in parents.items() if parent in below and pid not in below}
        below |= found
        grew = bool(found)
    return sorted(below - {root})


def naming(text: str) -> list[int]:
    """Every process, this one left out, with ``text`` in its command line."""
    found: list[int] = []
    for pid, _ in _processes():
        try:
            words = Path("/proc", str(pid), "cmdline").read_bytes()
        except OSError:
            continue
        if text.encode() in words and pid != os.getpid():
            found.append(pid)
    return found


def _processes() -> Iterator[tuple[int, int]]:
    """(pid, parent) of every process."""
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        try:
            yield int(name), int(_stat(name)[1])
        except OSError:
            continue


def _stat(name: str) -> list[str]:
    """State, parent and what follows them in ``/proc/<name>/stat``."""
    return Path("/proc", name, "stat").read_text(errors="replace").rpartition(")")[2].split()


def kill_all(root: int, deadline_s: float = 60.0) -> list[int]:
    """Kills everything below ``root`` until nothing is left, not even a zombie; returns the pids that had to be killed."""
    killed: set[int] = set()
    give_up = time.monotonic() + deadline_s
    while (left := _below(root)) and time.monotonic() < give_up:
        for pid in filter(alive, left):
            try:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
            except ProcessLookupError:
                continue
        reap()
        time.sleep(_SWEEP_S)
    return sorted(killed)


def reap() -> list[tuple[int, int]]:
    """(pid, exit status as subprocess counts it) of every child that ended."""
    ended: list[tuple[int, int]] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended.append((pid, os.waitstatus_to_exitcode(status)))


def spawn(order: dict[str, Any]) -> dict[str, Any]:
    """Starts ``order`` in a session of its own, its output appended to the log file."""
    try:
        with open(order["log"], "ab") as log:
            process = subprocess.Popen(
                order["spawn"],
                env=order["env"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=None if order["warns_here"] else log,
                start_new_session=True,
            )
    except OSError as error:
        return {"error": f"{order['spawn'][0]}: {error.strerror}"}
    process.returncode = 0  # NOTE: reaped by reap(), so Popen must neither wait nor warn
    return {"pid": process.pid}


def _say(message: dict[str, Any]) -> None:
    try:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        pass


def run(run_dir: Path) -> None:
    pending = b""
    while True:
        readable, _, _ = select.select([0], [], [], _POLL_S)
        for pid, status in reap():
            _say({"exited": pid, "status": status})
        if not readable:
            continue
        chunk = os.read(0, 1 << 16)
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            order = json.loads(line)
            if "end" in order:
                chunk = b""
                break
            _say(spawn(order))
        if not chunk:
            break
    killed = kill_all(os.getpid())
    shutil.rmtree(run_dir, ignore_errors=True)
    _say({"killed": killed})


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # NOTE: SIG_IGN would be inherited by everything it starts
    become_subreaper()
    run(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
