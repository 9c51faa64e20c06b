"""A process that carries packets between pairs of TAP devices, for kernels without netem.

Knows nothing of networks: for link N it makes the devices ``aN`` and ``bN`` in the namespace where it runs, and what comes out
of one goes into the other through a pipe. Line by line it is told on stdin what a link has to be, and answers each on stdout;
it ends, and its devices with it, when stdin does: with its parent at the latest.

Packets are as large as the kernel hands them over, up to 64 KiB of TCP at once, and each is lost or kept whole, as with netem.
Measured on two cores that others kept busy: 1.1 Gbit/s of one connection for 18 % of a core, and 35 to 60 µs for each way.
"""

import ctypes
import dataclasses
import fcntl
import json
import os
import select
import struct
import subprocess
import sys
import time
from typing import IO

from .commands import NetworkError
from .link import Link
from .pipe import Pipe

_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0
_TAP, _NO_INFO, _OFFLOAD_HEADER = 0x0002, 0x1000, 0x4000
_CHECKSUMS_AND_TCP = 0x1 | 0x2 | 0x4  # the kernel leaves both to us, and we to the kernel: the header goes along
_PR_SET_TIMERSLACK = 29
_LARGEST = (64 << 10) + 64
_AT_ONCE = 32
_END_S = 5.0


class Emulator:
    """The process, as who starts it sees it."""

    def __init__(self, before: list[str], num_links: int, seed: int) -> None:
        command = [*before, sys.executable, "-m", __name__, str(num_links), str(seed)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True, text=True)
        try:
            self._wait_answer()
        except BaseException:
            self.close()
            raise

    def change(self, number: int, link: Link) -> None:
        assert self._process.stdin is not None
        try:
            print(
                json.dumps({"number": number, "link": dataclasses.asdict(link)}), file=self._process.stdin, flush=True
            )
        except BrokenPipeError as error:
            raise NetworkError("the emulator of links has ended") from error
        self._wait_answer()

    def close(self) -> None:
        if self._process.stdin is None or self._process.stdin.closed:
            return
        with self._process:
            try:
                self._process.communicate(timeout=_END_S)
            except subprocess.TimeoutExpired:
                self._process.kill()

    def _wait_answer(self) -> None:
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            raise NetworkError(f"the emulator of links ended with status {self._process.wait()}")


class Carrier:
    """Inside the process: ``a`` and ``b`` of every link, and a pipe from each to the other."""

    def __init__(self, num_links: int, seed: int) -> None:
        self._pipes: dict[int, tuple[Pipe, int]] = {}  # by the device that packets come from: the pipe, where they go
        for number in range(num_links):
            a, b = _open_device(f"a{number}"), _open_device(f"b{number}")
            self._pipes[a] = Pipe(f"{seed} a{number}"), b
            self._pipes[b] = Pipe(f"{seed} b{number}"), a

    def change(self, number: int, link: Link) -> None:
        for pipe, _ in list(self._pipes.values())[2 * number : 2 * number + 2]:
            pipe.link = link

    def run(self, orders: IO[str]) -> None:
        sources = [orders.fileno(), *self._pipes]
        while True:
            next_at = min(pipe.next_at for pipe, _ in self._pipes.values())
            wait_s = None if next_at == float("inf") else max(0.0, next_at - time.monotonic())
            ready, _, _ = select.select(sources, [], [], wait_s)
            for source in ready:
                if source in self._pipes:
                    self._receive(source)
                elif not self._obey(orders.readline()):
                    return
            for pipe, target in self._pipes.values():
                for packet in pipe.take(time.monotonic()):
                    _send(target, packet)

    def _receive(self, source: int) -> None:
        pipe, _ = self._pipes[source]
        for _ in range(_AT_ONCE):
            try:
                packet = os.read(source, _LARGEST)
            except BlockingIOError:
                return
            pipe.put(packet, time.monotonic())

    def _obey(self, line: str) -> bool:
        if line:
            order = json.loads(line)
            self.change(order["number"], Link(**order["link"]))
            print("changed", flush=True)
        return bool(line)


def _open_device(name: str) -> int:
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TAP | _NO_INFO | _OFFLOAD_HEADER))
    fcntl.ioctl(device, _TUNSETOFFLOAD, _CHECKSUMS_AND_TCP)
    return device


def _send(target: int, packet: bytes) -> None:
    try:
        os.write(target, packet)
    except OSError:
        return  # a device that is not up, or has no room: the packet is lost, as on any link


def main() -> None:
    num_links, seed = map(int, sys.argv[1:])
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    os.setpriority(os.PRIO_PROCESS, 0, -20)  # before those whose network it is
    try:
        carrier = Carrier(num_links, seed)
    except OSError as error:
        sys.exit(f"emulator of links: /dev/net/tun: {error.strerror}")
    print("ready", flush=True)
    carrier.run(sys.stdin)


if __name__ == "__main__":
    main()
