"""A server is deaf once its port is closed for a while, never because it has not come up or stands still."""

import os
import signal
import socket
import subprocess
import sys
import time

from expertfleet.cluster.ray.listening import Listening
from expertfleet.membership.port_probe import listens


class Rig:
    def __init__(self) -> None:
        self.now, self.heard, self.asked = 0.0, True, 0
        self.listening = Listening(self._hear, lambda: self.now)

    def _hear(self) -> bool:
        self.asked += 1
        return self.heard

    def deaf_after(self, seconds: float) -> bool:
        self.now += seconds
        return self.listening.is_deaf()


def test_a_closed_port_is_deaf_after_five_seconds_and_an_opened_one_is_not() -> None:
    rig = Rig()
    assert not rig.deaf_after(0.0)
    rig.heard = False
    assert not any(rig.deaf_after(1.0) for _ in range(5))
    assert rig.deaf_after(1.0)
    rig.heard = True
    assert not rig.deaf_after(1.0)


def test_who_has_not_come_up_yet_is_not_deaf_nor_is_the_next_one() -> None:
    rig = Rig()
    rig.heard = False
    assert not any(rig.deaf_after(10.0) for _ in range(10))
    rig.heard = True
    assert not rig.deaf_after(1.0)
    rig.listening.forget()
    rig.heard = False
    assert not any(rig.deaf_after(10.0) for _ in range(10))


def test_it_is_asked_once_a_second() -> None:
    rig = Rig()
    for _ in range(100):
        rig.deaf_after(0.1)
    assert 9 <= rig.asked <= 11


def test_a_listening_socket_is_heard_also_of_a_process_that_stands_still() -> None:
    program = (
        "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        address = f"127.0.0.1:{int(server.stdout.readline())}"
        assert listens(address)
        os.kill(server.pid, signal.SIGSTOP)
        assert listens(address)
        server.kill()
    deadline = time.monotonic() + 10
    while listens(address) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not listens(address)


def test_nobody_there_is_not_heard() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert not listens(f"127.0.0.1:{port}")
