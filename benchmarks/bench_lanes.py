"""What a lane costs: one layer's dispatch and combine to shards that compute nothing, at the router and at the shards.

Everything is as in serving (routing to parts, frames, the shards' handler, pool and runtime, answers, the exact combine) but
the experts, which return their rows, after a sleep if one is asked for. Kinds of lanes take turns, round by round: ``local`` (sockets and shared memory) and ``grpc``; so does
``bare``, one gRPC stream of all the bytes with nothing around it. CPU is what processes burnt per layer, all threads.
Prints a CSV line per kind, number of tokens and of shards.
"""

import argparse
import itertools
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import grpc
import torch
from shard_process import ShardProcess, cpu_seconds

from expertfleet.checkpoint.make_tiny import make_tiny
from expertfleet.checkpoint.tensors import Checkpoint
from expertfleet.membership.epoch import Epoch, EpochId, ExpertSet, Member
from expertfleet.proto.codec import Hello
from expertfleet.proto.io_thread import IoThread
from expertfleet.proto.reactor import Reactor
from expertfleet.router.dispatch import Dispatch
from expertfleet.router.router import Router

LAYER = 1
_LIMIT = 64 << 20
_COLUMNS = "kind,tokens,shards,layers,median_us,p99_us,layers_per_s,router_cpu_us,shard_cpu_us"
_DRAWS = 16

Draw = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # rows, ids and weights of the top-k


class Lanes:
    """The router's end, with lanes of one kind."""

    def __init__(self, kind: str, checkpoint: Checkpoint, shards: list[ShardProcess], io: IoThread) -> None:
        self.kind = kind
        config = checkpoint.config
        self._reactor = Reactor()
        hello = Hello("attention-0", checkpoint.fingerprint, "bfloat16", _LIMIT)
        self.router = Router(io, self._reactor, hello, 60.0, local_lanes=kind == "local")
        members = []
        for number, shard in enumerate(shards):
            pairs = [(LAYER, expert) for expert in range(number, config.num_experts, len(shards))]
            held = ExpertSet.from_pairs(pairs, config.num_layers, config.num_experts)
            members.append(Member(shard.seat, shard.address, "echo", held))
        epoch = Epoch(EpochId(1, 1), checkpoint.fingerprint, "bfloat16", tuple(members), (), True)
        self.router.set_epoch(epoch)
        assert self._reactor.run(lambda: self.router.usable, 60)

    def run(self, draws: Sequence[Draw], layers: int, in_flight: int) -> list[float]:
        """Seconds of each layer from dispatch to combine, with so many of them under way at once."""
        waiting: deque[tuple[float, Dispatch]] = deque()
        times = []
        left = iter([draws[index % len(draws)] for index in range(layers)])
        while len(times) < layers:
            for draw in itertools.islice(left, in_flight - len(waiting)):
                waiting.append((time.perf_counter(), self.router.dispatch(LAYER, *draw)))
            began, dispatch = waiting.popleft()
            with closing(dispatch):
                assert self._reactor.run(lambda one=dispatch: one.done, 60)  # type: ignore[misc]
                assert dispatch.error is None, dispatch.error
                dispatch.combined()
            times.append(time.perf_counter() - began)
        return times

    def end(self) -> None:
        self.router.close()


class Bare:
    """A gRPC stream that sends back a message of the answer's size, and nothing else."""

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
            yield bytes(int.from_bytes(request[:4], "little"))

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
                    await stream.read()
                    times.append(time.perf_counter() - began)
                return times[1:]

        return self._io.submit(run())

    def end(self) -> None:
        self._server.stop(None)


def measure(options: argparse.Namespace, folder: Path) -> None:
    model = folder / "model"
    make_tiny(
        model, hidden=options.hidden, layers=2, experts=options.experts, expert_width=32, dense_width=32, vocab=512
    )
    checkpoint = Checkpoint.open(model)
    print(_COLUMNS)
    io = IoThread("io")  # gRPC's poller serves all of a process's loops, so there is one
    for count in options.shards:
        flags = ("--us-per-route", str(options.us_per_route))
        shards = [ShardProcess(model, f"expert-{number}", "echo", 1, *flags) for number in range(count)]
        paths = [Lanes(kind, checkpoint, shards, io) for kind in ("local", "grpc")]
        bare = Bare(io)
        for tokens in options.tokens:
            _compare(paths, bare, shards, tokens, checkpoint, options)
        for ended in (*paths, bare, *shards):
            ended.end()
    io.stop()


def _compare(
    paths: list[Lanes],
    bare: Bare,
    shards: list[ShardProcess],
    tokens: int,
    checkpoint: Checkpoint,
    options: argparse.Namespace,
) -> None:
    config = checkpoint.config
    times: dict[str, list[float]] = {path.kind: [] for path in (*paths, bare)}
    spent: dict[str, list[float]] = {path.kind: [0.0, 0.0, 0.0] for path in paths}  # wall, CPU here, CPU of the shards
    bytes_out = tokens * config.hidden_size * 2
    draws: list[Draw] = []
    for _ in range(_DRAWS):
        weights, ids = torch.rand(tokens, config.num_experts).topk(config.top_k)
        draws.append((torch.randn(tokens, config.hidden_size).bfloat16(), ids, weights))
    for _ in range(options.rounds):
        for path in paths:
            before = time.perf_counter(), cpu_seconds(), sum(shard.cpu_seconds() for shard in shards)
            times[path.kind] += path.run(draws, options.layers, options.in_flight)
            after = time.perf_counter(), cpu_seconds(), sum(shard.cpu_seconds() for shard in shards)
            for index in range(3):
                spent[path.kind][index] += after[index] - before[index]
        times["bare"] += bare.times(bytes_out, bytes_out * config.top_k, options.layers)
    for kind, seconds in times.items():
        ordered, count = sorted(seconds), len(seconds)
        median, p99 = (f"{1e6 * each:.0f}" for each in (ordered[count // 2], ordered[int(0.99 * (count - 1))]))
        wall, here, there = spent.get(kind, (sum(seconds), 0.0, 0.0))
        burnt = [f"{1e6 * each / count:.0f}" if each else "" for each in (here, there)]
        print(kind, tokens, len(shards), count, median, p99, f"{count / wall:.1f}", *burnt, sep=",", flush=True)


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
    parser.add_argument("--hidden", type=int, default=7168)
    parser.add_argument("--experts", type=int, default=48)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="bench") as folder:
        measure(options, Path(folder))


if __name__ == "__main__":
    main()
