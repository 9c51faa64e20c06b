"""What a lane costs: one layer's dispatch and combine to shards that compute nothing, at the router and at the shards.

Everything is as in serving (routing to parts, frames, the shards' handler, pool and runtime, answers, the exact combine) but
the experts, which return their rows. Kinds of lanes take turns, round by round: ``local`` (sockets and shared memory) and ``grpc``; so does
``bare``, a gRPC stream of one frame's size with nothing around it. CPU is what the process burnt per layer, all threads.
Prints a CSV line per kind, number of tokens and of shards.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
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
from expertfleet.router.router import Router

LAYER = 1
_LIMIT = 64 << 20
_COLUMNS = "kind,tokens,shards,layers,median_us,p99_us,router_cpu_us,shard_cpu_us,bytes_out,bytes_in"


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

    def layer(self, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> None:
        with closing(self.router.dispatch(LAYER, x, ids, weights)) as dispatch:
            assert self._reactor.run(lambda: dispatch.done, 60)
            assert dispatch.error is None, dispatch.error
            dispatch.combined()

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
        shards = [ShardProcess(model, f"expert-{number}", "echo") for number in range(count)]
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
    cpu: dict[str, list[float]] = {path.kind: [0.0, 0.0] for path in paths}
    bytes_out = tokens * config.hidden_size * 2
    bytes_in = bytes_out * config.top_k // len(shards)
    for _ in range(options.rounds):
        for path in paths:
            before = cpu_seconds(), [shard.cpu_seconds() for shard in shards]
            for _ in range(options.layers):
                x = torch.randn(tokens, config.hidden_size).bfloat16()
                scores = torch.rand(tokens, config.num_experts)
                weights, ids = scores.topk(config.top_k)
                began = time.perf_counter()
                path.layer(x, ids, weights)
                times[path.kind].append(time.perf_counter() - began)
            cpu[path.kind][0] += cpu_seconds() - before[0]
            cpu[path.kind][1] += sum(shard.cpu_seconds() - was for shard, was in zip(shards, before[1], strict=True))
        times["bare"] += bare.times(bytes_out, bytes_in, options.layers)
    for kind, seconds in times.items():
        ordered = sorted(seconds)
        p99 = ordered[int(0.99 * (len(ordered) - 1))]
        burnt = [f"{1e6 * each / len(ordered):.0f}" for each in cpu[kind]] if kind in cpu else ["", ""]
        told = (kind, tokens, len(shards), len(ordered), f"{1e6 * statistics.median(ordered):.0f}", f"{1e6 * p99:.0f}")
        print(
            *told,
            *burnt,
            bytes_out * (1 if kind == "bare" else len(shards)),
            bytes_in * len(shards),
            sep=",",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--layers", type=int, default=100, help="in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--hidden", type=int, default=7168)
    parser.add_argument("--experts", type=int, default=48)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="bench") as folder:
        measure(options, Path(folder))


if __name__ == "__main__":
    main()
