"""What a lane costs: one layer's dispatch and combine to shards that compute nothing, at the router and at the shards.

Everything is as in serving (routing to parts, frames, the shards' handler, pool and runtime, answers, the exact combine) but
the experts, which return their rows, after a sleep if one is asked for. Kinds of lanes take turns, round by round: ``local``
(sockets and shared memory), ``tcp`` (beside gRPC), and ``grpc`` alone; so do ``raw``, one TCP connection, and ``bare``, one gRPC stream, with as many bytes as rows and answers have and nothing
around them. CPU is what processes burnt per layer, all threads; ``experts_us`` is how long the experts of all shards took of a layer, by
the clock, in the mean: with one shard the lane itself takes what is left of the median without them.
Prints a CSV line per kind, number of tokens and of shards.
"""

import argparse
import socket
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread

import grpc
import torch
from router_lanes import KINDS, Lanes, random_draw
from shard_process import ShardProcess, cpu_seconds, members

from expertfleet.checkpoint.make_tiny import make_tiny
from expertfleet.checkpoint.tensors import Checkpoint
from expertfleet.proto.codec import MAX_PIECE_BYTES
from expertfleet.transport.io_thread import IoThread

_COLUMNS = "kind,tokens,shards,layers,median_us,p99_us,layers_per_s,router_cpu_us,shard_cpu_us,experts_us"
_DRAWS = 16
_WARM_UP = 10  # layers of each round before it counts, as another kind had the turn before


class Bare:
    """A gRPC stream that sends back as many bytes as an answer has, in pieces as large as its pieces, and nothing else."""

    kind = "bare"

    def __init__(self, io: IoThread) -> None:
        self._io = io
        self._server = grpc.server(ThreadPoolExecutor(1))
        handler = grpc.stream_stream_rpc_method_handler(self._answer)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Bare", {"Echo": handler}),))
        port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()
        self._channel_address = f"127.0.0.1:{port}"

    @staticmethod
    def _answer(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        for request in requests:
            left = int.from_bytes(request[:4], "little")
            while left:
                yield bytes(min(left, MAX_PIECE_BYTES))
                left -= min(left, MAX_PIECE_BYTES)

    def times(self, bytes_out: int, bytes_in: int, count: int) -> list[float]:
        async def run() -> list[float]:
            request = bytes_in.to_bytes(4, "little") + bytes(bytes_out)
            options = [("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0)]
            async with grpc.aio.insecure_channel(self._channel_address, options=options) as channel:
                stream = channel.stream_stream("/Bare/Echo")()
                times = []
                for _ in range(count + 1):
                    began = time.perf_counter()
                    await stream.write(request)
                    left = bytes_in
                    while left:
                        left -= len(await stream.read())
                    times.append(time.perf_counter() - began)
                return times[1:]

        return self._io.submit(run())

    def end(self) -> None:
        self._server.stop(None)


class Raw:
    """The same over a TCP connection."""

    kind = "raw"

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connected, _ = self._listening.accept()
            except OSError:
                return
            with connected:
                self._answer(connected)

    @staticmethod
    def _answer(connected: socket.socket) -> None:
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        bytes_out, bytes_in = (int.from_bytes(connected.recv(8, socket.MSG_WAITALL), "little") for _ in range(2))
        request, answer = memoryview(bytearray(bytes_out)), bytes(bytes_in)
        while connected.recv_into(request, bytes_out, socket.MSG_WAITALL):
            connected.sendall(answer)

    def times(self, bytes_out: int, bytes_in: int, count: int) -> list[float]:
        with socket.create_connection(self._listening.getsockname()) as connected:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connected.sendall(bytes_out.to_bytes(8, "little") + bytes_in.to_bytes(8, "little"))
            request, answer = bytes(bytes_out), memoryview(bytearray(bytes_in))
            times = []
            for _ in range(count + 1):
                began = time.perf_counter()
                connected.sendall(request)
                connected.recv_into(answer, bytes_in, socket.MSG_WAITALL)
                times.append(time.perf_counter() - began)
            return times[1:]

    def end(self) -> None:
        self._listening.close()


def measure(options: argparse.Namespace, folder: Path) -> None:
    model = folder / "model"
    make_tiny(
        model, hidden=options.hidden, layers=2, experts=options.experts, expert_width=32, dense_width=32, vocab=512
    )
    checkpoint = Checkpoint.open(model)
    print(_COLUMNS)
    io = IoThread("io")  # gRPC's poller serves all of a process's loops, so there is one
    for count in options.shards:
        flags = ("--us-per-route", str(options.us_per_route), "--spin-us", str(options.spin_us))
        shards = [ShardProcess(model, [f"expert-{number}"], "echo", 1, *flags) for number in range(count)]
        spin_us = options.spin_us
        everybody = members(shards, checkpoint.config)
        paths = [Lanes(kind, checkpoint, everybody, io, spin_us=spin_us) for kind in KINDS]
        plain: list[Bare | Raw] = [Raw(), Bare(io)]
        for tokens in options.tokens:
            _compare(paths, plain, shards, tokens, checkpoint, options)
        for path in (*paths, *plain):
            path.end()
        for shard in shards:
            shard.end()
    io.stop()


def _compare(
    paths: list[Lanes],
    plain: list[Bare | Raw],
    shards: list[ShardProcess],
    tokens: int,
    checkpoint: Checkpoint,
    options: argparse.Namespace,
) -> None:
    config = checkpoint.config
    times: dict[str, list[float]] = {each.kind: [] for each in (*paths, *plain)}
    spent = {path.kind: [0.0] * 4 for path in paths}  # wall, CPU here, CPU of the shards, their experts' time
    bytes_out = tokens * config.hidden_size * 2
    draws = [random_draw(tokens, config) for _ in range(_DRAWS)]
    for _ in range(options.rounds):
        for path in paths:
            path.run(draws, _WARM_UP, options.in_flight)
            before = _seconds(shards)
            times[path.kind] += path.run(draws, options.layers, options.in_flight)
            for index, (then, now) in enumerate(zip(before, _seconds(shards), strict=True)):
                spent[path.kind][index] += now - then
        for each in plain:
            times[each.kind] += each.times(bytes_out, bytes_out * config.top_k, options.layers)
    for kind, seconds in times.items():
        ordered, count = sorted(seconds), len(seconds)
        median, p99 = (f"{1e6 * each:.0f}" for each in (ordered[count // 2], ordered[int(0.99 * (count - 1))]))
        wall, *each_s = spent.get(kind, (sum(seconds), 0.0, 0.0, 0.0))
        burnt = [f"{1e6 * each / count:.0f}" if each else "" for each in each_s]
        print(kind, tokens, len(shards), count, median, p99, f"{count / wall:.1f}", *burnt, sep=",", flush=True)


def _seconds(shards: list[ShardProcess]) -> tuple[float, ...]:
    """Now: by the clock, of CPU here, of CPU of the shards, and of their experts by the clock."""
    of_shards = [shard.seconds() for shard in shards]
    return (time.perf_counter(), cpu_seconds(), *map(sum, zip(*of_shards, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--layers", type=int, default=100, help="in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--in-flight", type=int, default=1, help="layers under way at once, as of several micro-batches"
    )
    parser.add_argument("--us-per-route", type=float, default=0.0, help="a shard sleeps so long for each of its routes")
    parser.add_argument("--spin-us", type=int, default=0, help="how long both ends look for work before they sleep")
    parser.add_argument("--hidden", type=int, default=7168)
    parser.add_argument("--experts", type=int, default=48)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="bench") as folder:
        measure(options, Path(folder))


if __name__ == "__main__":
    main()
