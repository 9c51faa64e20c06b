import contextlib
import os
import shutil
import socket
import subprocess
import sys

import pytest
from harness.network import Network, networked

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None, reason="network namespaces need root and ip"
)
CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=1)"


def reaches(network: Network, machine: int, port: int) -> bool:
    command = network.command(machine, sys.executable, "-c", CONNECT, network.address, str(port))
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_a_cut_machine_alone_is_unreachable_until_it_is_joined_again() -> None:
    with networked(2) as network, socket.create_server((network.address, 0)) as server:
        port = server.getsockname()[1]
        assert reaches(network, 0, port)
        network.cut(0)
        assert not reaches(network, 0, port)
        assert reaches(network, 1, port)
        network.join(0)
        assert reaches(network, 0, port)


def test_nothing_is_left_and_this_thread_is_back_home() -> None:
    home = os.readlink("/proc/thread-self/ns/net")
    with contextlib.suppress(KeyError), networked(1):
        assert os.readlink("/proc/thread-self/ns/net") != home
        raise KeyError
    assert os.readlink("/proc/thread-self/ns/net") == home
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    assert f"xc{os.getpid()}" not in listed
