"""The end of a role that is a plain process."""

import signal
import subprocess
import sys

ROLE = """
import signal
import threading
import time
from dataclasses import dataclass

import torch

from expertfleet.settings.process import run_role


@dataclass(frozen=True)
class Config:
    pass


class Server:
    address, failure = "here", ""

    def start(self):
        # What the drain was too short for: torch on a thread that nobody waits for.
        self.over = threading.Event()
        threading.Thread(target=self.compute, daemon=True).start()

    def compute(self):
        x = torch.ones(64, 512)
        if SIGNALLED:  # as the kernel may choose this thread
            time.sleep(0.5)
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        while True:
            torch.nn.functional.linear(x, x)

    def wait(self):
        self.over.wait()

    def stop(self):
        print("stopped")
        self.over.set()


run_role("role", Config, lambda config: Server())
"""


def test_a_computation_under_way_does_not_abort_the_process() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ROLE.replace("SIGNALLED", "False")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as role:
        assert role.stdout is not None
        assert role.stdout.readline() == "listening here\n"
        role.send_signal(signal.SIGTERM)
        out, error = role.communicate(timeout=30)
    assert (role.returncode, out, error) == (0, "stopped\n", "")


def test_a_signal_that_comes_to_another_thread_ends_the_process() -> None:
    role = subprocess.run(
        [sys.executable, "-c", ROLE.replace("SIGNALLED", "True")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (role.returncode, role.stdout, role.stderr) == (0, "listening here\nstopped\n", "")
