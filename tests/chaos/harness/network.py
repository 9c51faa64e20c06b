"""A small network whose links can be cut: a namespace for each machine, and one with the bridge that joins them.

Knows nothing of what runs there. Needs root and ``ip``, and leaves nothing behind. A link is cut by taking its end off the
bridge: packets vanish, and neither side is told.
"""

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator

_SUBNET = "10.213.78"
_NEWNET = 0x40000000


class NetworkError(Exception):
    """The network cannot be made or changed; one line."""


class Network:
    """``address`` is the bridge's own."""

    address = f"{_SUBNET}.254"

    def __init__(self, machines: int) -> None:
        self._hub = f"xc{os.getpid()}hub"
        self._names = [f"xc{os.getpid()}m{number}" for number in range(machines)]

    def create(self) -> None:
        if os.geteuid():
            raise NetworkError("making network namespaces needs root")
        _ip("netns", "add", self._hub)
        _ip("-n", self._hub, "link", "set", "lo", "up")
        _ip("-n", self._hub, "link", "add", "bridge", "type", "bridge")
        _ip("-n", self._hub, "addr", "add", f"{self.address}/24", "dev", "bridge")
        _ip("-n", self._hub, "link", "set", "bridge", "up")
        for number, name in enumerate(self._names):
            _ip("netns", "add", name)
            _ip("link", "add", "net", "netns", name, "type", "veth", "peer", "name", f"m{number}", "netns", self._hub)
            _ip("-n", self._hub, "link", "set", f"m{number}", "master", "bridge", "up")
            _ip("-n", name, "addr", "add", f"{self.machine(number)}/24", "dev", "net")
            _ip("-n", name, "link", "set", "net", "up")
            _ip("-n", name, "link", "set", "lo", "up")

    def delete(self) -> None:
        for name in (*self._names, self._hub):
            with contextlib.suppress(NetworkError):
                _ip("netns", "del", name)

    def machine(self, number: int) -> str:
        """Its address."""
        return f"{_SUBNET}.{number + 1}"

    def command(self, number: int, *command: str) -> list[str]:
        """``command`` as it runs on that machine."""
        return ["ip", "netns", "exec", self._names[number], *command]

    def cut(self, number: int) -> None:
        _ip("-n", self._hub, "link", "set", f"m{number}", "nomaster")

    def join(self, number: int) -> None:
        _ip("-n", self._hub, "link", "set", f"m{number}", "master", "bridge")

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """This thread, and what it starts, is where the bridge is."""
        with open("/proc/thread-self/ns/net", "rb") as home, open(f"/run/netns/{self._hub}", "rb") as hub:
            _enter(hub.fileno())
            try:
                yield
            finally:
                _enter(home.fileno())


@contextlib.contextmanager
def networked(machines: int) -> Iterator[Network]:
    """A network with this thread inside."""
    network = Network(machines)
    try:
        network.create()
        with network.inside():
            yield network
    finally:
        network.delete()


def _enter(namespace: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, _NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def _ip(*arguments: str) -> None:
    try:
        done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    except OSError as error:
        raise NetworkError(f"ip: {error.strerror}") from error
    if done.returncode:
        raise NetworkError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
