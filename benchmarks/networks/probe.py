"""What a way between two machines really does, by plain TCP: its round trip, and the rate of one connection.

Knows nothing of how the way was made. One end answers each byte until it is told to fill the connection; the other counts.
"""

import contextlib
import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

from .commands import NetworkError
from .network import Network

_ECHOES, _WARM_ECHOES = 100, 10
_FILL_S, _WARM_FILL_S = 1.0, 0.5
_TIMEOUT_S = 30.0
_PIECE = 1 << 20
_RATE_WITHIN = (0.8, 1.1)
_ROUND_TRIP_WITHIN = (0.9, 1.25)


@dataclass(frozen=True)
class Found:
    """Round trip: the median; rate: towards the machine that asked."""

    round_trip_ms: float
    gbit: float

    def __str__(self) -> str:
        return f"{self.gbit:.2f} Gbit/s, {self.round_trip_ms:.3f} ms"

    def is_made(self, gbit: float, round_trip_ms: float) -> bool:
        """Whether it is what was asked, 0 being nothing."""
        return (
            self.is_no_better(gbit, round_trip_ms)
            and self.gbit >= _RATE_WITHIN[0] * gbit
            and (not round_trip_ms or self.round_trip_ms <= _ROUND_TRIP_WITHIN[1] * round_trip_ms)
        )

    def is_no_better(self, gbit: float, round_trip_ms: float) -> bool:
        """Whether it is neither faster nor shorter than what was asked, so that whatever is reached over it could be there, too."""
        return (not gbit or self.gbit <= _RATE_WITHIN[1] * gbit) and (
            self.round_trip_ms >= _ROUND_TRIP_WITHIN[0] * round_trip_ms
        )


def probe(network: Network, asking: int, answering: int) -> Found:
    words = (sys.executable, "-m", __name__)
    with _running(network.command(answering, *words, network.machine(answering))) as answerer:
        assert answerer.stdout is not None
        port = answerer.stdout.readline().strip()
        command = network.command(asking, *words, network.machine(answering), port)
        asked = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if asked.returncode:
        raise NetworkError(f"machine {asking} cannot reach machine {answering}")
    return Found(**json.loads(asked.stdout))


@contextlib.contextmanager
def _running(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def answer(address: str) -> None:
    with socket.create_server((address, 0)) as server:
        print(server.getsockname()[1], flush=True)
        connection, _ = server.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection, contextlib.suppress(ConnectionError):
        while (byte := connection.recv(1)) == b"e":
            connection.sendall(byte)
        piece = bytes(_PIECE)
        while byte:
            connection.sendall(piece)


def ask(address: str, port: int) -> Found:
    with socket.create_connection((address, port), timeout=_TIMEOUT_S) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        times = [_echo_s(connection) for _ in range(_WARM_ECHOES + _ECHOES)]
        connection.sendall(b"f")
        _count(connection, _WARM_FILL_S)
        began = time.perf_counter()
        num_bytes = _count(connection, _FILL_S)
        took_s = time.perf_counter() - began
    return Found(1e3 * statistics.median(times[_WARM_ECHOES:]), 8 * num_bytes / took_s / 1e9)


def _echo_s(connection: socket.socket) -> float:
    began = time.perf_counter()
    connection.sendall(b"e")
    connection.recv(1)
    return time.perf_counter() - began


def _count(connection: socket.socket, seconds: float) -> int:
    """Bytes that come meanwhile."""
    into, num_bytes, until = bytearray(_PIECE), 0, time.perf_counter() + seconds
    while time.perf_counter() < until:
        num_bytes += connection.recv_into(into)
    return num_bytes


if __name__ == "__main__":
    if len(sys.argv) == 2:
        answer(sys.argv[1])
    else:
        print(json.dumps(vars(ask(sys.argv[1], int(sys.argv[2])))))
