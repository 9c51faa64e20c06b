"""A small network of machines: a namespace for each, and one with the bridge that joins them.

Knows nothing of what runs there. Needs root and ``ip``, and leaves nothing behind. Every machine hangs on a link of its own,
which can be cut, slowed down and made to lose packets while traffic flows. A link is cut by taking its end off the bridge:
packets vanish, and neither side is told. A rate alone is kept by the kernel's ``tbf``; delay and loss by its ``netem``, or, if it
has none, by an emulator between the link's end and the bridge. A link that had one of these keeps it: taking it out would lose
the packets that it holds.
"""

import contextlib
import ctypes
import dataclasses
import itertools
import os
import time
from collections.abc import Iterator

from .commands import NetworkError, ip, port_state, tc
from .emulator import Emulator
from .link import Link

_SUBNET = "10.213.78"
_NEWNET = 0x40000000
_FORWARDING_S, _POLL_S = 10.0, 0.01
_numbers = itertools.count()


class Network:
    """``address`` is the bridge's own; ``seed`` decides which packets an emulator loses."""

    address = f"{_SUBNET}.254"

    def __init__(self, machines: int, seed: int = 1) -> None:
        name = f"xf{os.getpid()}n{next(_numbers)}"
        self._hub = f"{name}hub"
        self._names = [f"{name}m{number}" for number in range(machines)]
        self._links = [Link()] * machines
        self._seed = seed
        self._late: set[int] = set()
        self._cut: set[int] = set()
        self._has_netem = False
        self._emulator: Emulator | None = None

    def create(self) -> None:
        if os.geteuid():
            raise NetworkError("making network namespaces needs root")
        ip("netns", "add", self._hub)
        ip("-n", self._hub, "link", "set", "lo", "up")
        self._has_netem = self._knows_netem()
        self._add_bridge("bridge")
        ip("-n", self._hub, "addr", "add", f"{self.address}/24", "dev", "bridge")
        for number, name in enumerate(self._names):
            ip("netns", "add", name)
            ip("link", "add", "net", "netns", name, "type", "veth", "peer", "name", f"m{number}", "netns", self._hub)
            ip("-n", name, "addr", "add", f"{self.machine(number)}/24", "dev", "net")
            ip("-n", name, "link", "set", "net", "up")
            ip("-n", name, "link", "set", "lo", "up")
            self.join(number)

    def delete(self) -> None:
        if self._emulator is not None:
            self._emulator.close()
        for name in (*self._names, self._hub):
            with contextlib.suppress(NetworkError):
                ip("netns", "del", name)

    def machine(self, number: int) -> str:
        """Its address."""
        return f"{_SUBNET}.{number + 1}"

    def command(self, number: int, *command: str) -> list[str]:
        """``command`` as it runs on that machine."""
        return ["ip", "netns", "exec", self._names[number], *command]

    def cut(self, number: int) -> None:
        ip("-n", self._hub, "link", "set", f"m{number}", "nomaster")
        self._cut.add(number)

    def join(self, number: int) -> None:
        bridge = f"side{number}" if number in self._late and not self._has_netem else "bridge"
        self._attach(f"m{number}", bridge)
        self._cut.discard(number)

    def change(self, number: int, **values: float) -> None:
        """Gives fields of a machine's ``Link`` other values; both directions are the same."""
        link = dataclasses.replace(self._links[number], **values)
        if link.is_late and number not in self._late:
            self._make_late(number)
        if number not in self._late:
            self._queue(number, link.tbf if link.gbit else ())
        elif self._emulator is not None:
            self._emulator.change(number, link)
        else:
            self._queue(number, link.netem)
        self._links[number] = link

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """This thread, and what it starts, is where the bridge is."""
        with open("/proc/thread-self/ns/net", "rb") as home, open(f"/run/netns/{self._hub}", "rb") as hub:
            _enter(hub.fileno())
            try:
                yield
            finally:
                _enter(home.fileno())

    def _make_late(self, number: int) -> None:
        """Lets delay and loss be asked of a link: with an emulator, its end moves to a bridge beside, of which one way leads on."""
        if not self._has_netem:
            self._queue(number, ())
            if self._emulator is None:
                self._emulator = Emulator(["ip", "netns", "exec", self._hub], len(self._names), self._seed)
            self._add_bridge(f"side{number}")
            self._attach(f"a{number}", f"side{number}")
            self._attach(f"b{number}", "bridge")
        self._late.add(number)
        if number not in self._cut:
            self.join(number)

    def _attach(self, device: str, bridge: str) -> None:
        """Until packets pass: a bridge hears late, up to a second after another device's news, that a device is up."""
        ip("-n", self._hub, "link", "set", device, "master", bridge, "up")
        ends_at = time.monotonic() + _FORWARDING_S
        while (state := port_state(self._hub, device)) != "forwarding":
            if time.monotonic() > ends_at:
                raise NetworkError(f"{device} is {state or 'no port'} at {bridge} after {_FORWARDING_S:g} s")
            time.sleep(_POLL_S)

    def _queue(self, number: int, words: tuple[str, ...]) -> None:
        """What holds packets at both ends of a link."""
        for namespace, device in ((self._names[number], "net"), (self._hub, f"m{number}")):
            if words:
                tc(namespace, "qdisc", "replace", "dev", device, "root", *words)
            elif self._links[number].gbit:
                tc(namespace, "qdisc", "del", "dev", device, "root")

    def _knows_netem(self) -> bool:
        try:
            tc(self._hub, "qdisc", "add", "dev", "lo", "root", *Link().netem)
        except NetworkError:
            return False
        tc(self._hub, "qdisc", "del", "dev", "lo", "root")
        return True

    def _add_bridge(self, name: str) -> None:
        ip("-n", self._hub, "link", "add", name, "type", "bridge")
        ip("-n", self._hub, "link", "set", name, "up")


@contextlib.contextmanager
def networked(machines: int, seed: int = 1) -> Iterator[Network]:
    """A network with this thread inside."""
    network = Network(machines, seed)
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
