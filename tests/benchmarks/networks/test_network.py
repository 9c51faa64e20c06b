import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from expertfleet.benchmarks.networks.commands import NetworkError
from expertfleet.benchmarks.networks.emulator import Emulator
from expertfleet.benchmarks.networks.link import Link
from expertfleet.benchmarks.networks.network import Network, networked
from expertfleet.benchmarks.networks.probe import Found, probe
from expertfleet.cluster.ray.process_reaper import alive, descendants

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None, reason="network namespaces need root and ip"
)
CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=3)"
ECHO = """
import socket, sys
server = socket.socket(type=socket.SOCK_DGRAM)
server.bind((sys.argv[1], 7))
print("ready", flush=True)
while True:
    server.sendto(*server.recvfrom(2000))
"""
WAITS = """
import sys, time
from expertfleet.benchmarks.networks.commands import NetworkError
from expertfleet.benchmarks.networks.emulator import Emulator
from expertfleet.benchmarks.networks.link import Link
from expertfleet.benchmarks.networks.network import networked
with networked(2) as network:
    network.change(0, delay_ms=1)
    print("ready", flush=True)
    time.sleep(60)
"""


def reaches(network: Network, machine: int, port: int) -> bool:
    command = network.command(machine, sys.executable, "-c", CONNECT, network.address, str(port))
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def echoing(network: Network, machine: int) -> Iterator[socket.socket]:
    """A socket at the bridge, connected to a machine that sends every datagram back."""
    command = network.command(machine, sys.executable, "-c", ECHO, network.machine(machine))
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process, socket.socket(type=socket.SOCK_DGRAM) as here:
        assert process.stdout is not None
        try:
            process.stdout.readline()
            here.connect((network.machine(machine), 7))
            here.settimeout(5)
            yield here
        finally:
            process.kill()


def round_trip_s(here: socket.socket) -> float:
    began = time.monotonic()
    here.send(b"?")
    here.recv(1)
    return time.monotonic() - began


def num_echoed(here: socket.socket, num_sent: int) -> int:
    num = 0
    for _ in range(num_sent):
        here.send(b"?")
        num += num_waiting(here, 0.002)
    return num + num_waiting(here, 1)


def num_waiting(here: socket.socket, within_s: float) -> int:
    num = 0
    while select.select([here], [], [], within_s)[0]:
        num += len(here.recv(1))
    return num


def namespaces(pid: int) -> list[str]:
    """What a process with a network has made."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split() if name.startswith(f"xf{pid}")]


def test_a_cut_machine_alone_is_unreachable_until_it_is_joined_again() -> None:
    with networked(2) as network, socket.create_server((network.address, 0)) as server:
        port = server.getsockname()[1]
        assert reaches(network, 0, port)
        network.cut(0)
        assert not reaches(network, 0, port)
        assert reaches(network, 1, port)
        network.join(0)
        assert reaches(network, 0, port)


def test_a_delay_comes_and_goes_while_traffic_flows() -> None:
    with networked(2) as network, echoing(network, 0) as here, echoing(network, 1) as other:
        network.change(0, delay_ms=100)
        assert round_trip_s(here) >= 0.2
        assert min(round_trip_s(other) for _ in range(10)) < 0.1, "the link of another machine"
        here.send(b"?")
        network.change(0, delay_ms=0)
        assert here.recv(1) == b"?", "what was under way arrives"
        assert min(round_trip_s(here) for _ in range(10)) < 0.1


def test_loss_takes_its_share_in_both_directions() -> None:
    with networked(1) as network, echoing(network, 0) as here:
        assert num_echoed(here, 100) == 100
        network.change(0, loss_percent=30)
        shares = (
            num_echoed(here, 400) / 400 for _ in range(3)
        )  # what waits too long on a busy machine seems lost, too
        assert any(0.35 <= share <= 0.63 for share in shares)
        network.change(0, loss_percent=0)
        assert num_echoed(here, 100) == 100


def test_a_slowed_link_can_be_cut_and_a_cut_link_slowed() -> None:
    with networked(1) as network, socket.create_server((network.address, 0)) as server:
        port = server.getsockname()[1]
        network.cut(0)
        network.change(0, delay_ms=1)
        assert not reaches(network, 0, port)
        network.join(0)
        assert reaches(network, 0, port)
        network.cut(0)
        assert not reaches(network, 0, port)


@pytest.mark.parametrize("delay_ms", [0, 1])
def test_a_rate_is_kept_by_the_kernel_and_by_the_emulator(delay_ms: float) -> None:
    with networked(2) as network:
        network.change(0, gbit=0.02, delay_ms=delay_ms)
        # What a burst leaves over, and buffers, come on top; and once in a while what waited while this process did not run.
        assert any(0 < (slow := probe(network, 0, 1).gbit) < 0.03 for _ in range(3))
        network.change(0, gbit=0)
        assert probe(network, 0, 1).gbit > 2 * slow


def test_what_was_found_is_held_against_what_was_asked() -> None:
    assert Found(0.52, 0.93).is_made(1, 0.5)
    assert not Found(0.52, 0.93).is_made(10, 0.5)
    assert not Found(0.72, 0.93).is_made(1, 0.5)
    assert not Found(0.02, 0.93).is_made(1, 0.5)
    assert Found(0.02, 30.0).is_made(0, 0)
    assert not Found(0.5, 0.7).is_made(1, 0.5)
    assert not Found(0.52, 0.93).is_made(0, 2)


def test_what_is_no_better_than_what_was_asked_has_neither_more_rate_nor_less_delay() -> None:
    assert Found(0.14, 13.7).is_no_better(25, 0.1)
    assert Found(0.52, 0.93).is_no_better(1, 0.5)
    assert not Found(0.02, 0.93).is_no_better(1, 0.5)
    assert not Found(0.52, 0.93).is_no_better(0.5, 0.5)
    assert Found(0.02, 30.0).is_no_better(0, 0)


def test_nothing_is_left_and_this_thread_is_back_home() -> None:
    home = os.readlink("/proc/thread-self/ns/net")
    with contextlib.suppress(KeyError), networked(2) as network:
        network.change(0, delay_ms=1)
        assert os.readlink("/proc/thread-self/ns/net") != home
        assert len(namespaces(os.getpid())) == 3
        raise KeyError
    assert os.readlink("/proc/thread-self/ns/net") == home
    assert namespaces(os.getpid()) == []
    assert descendants(os.getpid()) == []


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGKILL])
def test_what_delays_packets_ends_with_its_parent(signal_number: signal.Signals) -> None:
    command = [sys.executable, "-c", WAITS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        below = descendants(process.pid)
        process.send_signal(signal_number)
    give_up = time.monotonic() + 10
    while any(map(alive, below)):
        assert time.monotonic() < give_up
        time.sleep(0.05)
    left = namespaces(process.pid)
    for name in left:
        subprocess.run(["ip", "netns", "del", name], check=True)
    assert len(left) == (3 if signal_number == signal.SIGKILL else 0), "SIGKILL leaves no time to clear up"


def test_an_emulator_that_cannot_start_or_has_ended_is_told() -> None:
    with pytest.raises(NetworkError, match="the emulator of links ended with status 1"):
        Emulator(["false"], 1, 1)
    with networked(1) as network:
        emulator = Emulator(network.command(0), 1, 1)
        try:
            (pid,) = descendants(os.getpid())
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(NetworkError, match="the emulator of links"):
                emulator.change(0, Link(delay_ms=1))
        finally:
            emulator.close()
