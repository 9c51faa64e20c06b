"""Decoding and prefill over a network that is slow on purpose: every machine is a network namespace with a link of its own.

Needs root, ``ip`` and ``tc``, and leaves nothing behind. Every link has the rate; delay and loss are those of the attention worker's
link, which everything passes. Before a network is used, a plain connection measures what it really is. One that is slower or longer
than what was asked is ``worse``: its shares, of the floor of what was asked, are what the better one would reach at least. One that
is better is not used, and listed as "not made". Where the kernel has no ``netem``, an emulator of ours holds packets back, which
takes processor time from what is measured: of a core, 0.1 to 0.2 s for a gigabit.

Each machine runs one expert shard, the first one also the attention worker, which asks all of them over the network. A second such
network has no limit, and the two take turns. For every rate and round trip it prints decoded tokens/s of 1 and of --concurrency
sequences and prefilled tokens/s, and each as a share of the floor: the smaller of what the network without a limit reached in its
turn and of what the attention worker's link can carry. All are medians of the rounds.

A slice of K2-Thinking (``--model``, of ``expertfleet checkpoint make-tiny --like kimi-k2-thinking --layers 2``) takes some minutes
a cell on two cores; --rounds, --decode and --prefill shorten it.
"""

import argparse
import asyncio
import contextlib
import itertools
import os
import random
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from role_process import roles

from expertfleet.benchmarks.networks.commands import NetworkError
from expertfleet.benchmarks.networks.link import Link
from expertfleet.benchmarks.networks.network import Network, networked
from expertfleet.benchmarks.networks.probe import Found, probe
from expertfleet.checkpoint.make_tiny import make_tiny
from expertfleet.checkpoint.model_config import ModelConfig
from expertfleet.membership import security
from expertfleet.proto.generated import generate_pb2, generate_pb2_grpc

_PROMPT = 16
_READY_WITHIN_S = 1800.0
_LAID_AT_MOST = 3  # times: what a busy machine measures may be off


@contextlib.contextmanager
def fleet(network: Network, options: argparse.Namespace, folder: Path, token: str) -> Iterator[str]:
    """Starts the processes and gives the attention worker's address, which only its own machine reaches."""
    num_experts = ModelConfig.from_dir(options.model).num_experts
    given = ("--model", options.model, "--threads", options.threads)
    with roles(folder, EXPERTFLEET_CLUSTER_TOKEN=token) as started:
        shards = []
        for number in range(options.machines):
            mine = ",".join(str(expert) for expert in range(number, num_experts, options.machines))
            flags = ("--host", network.machine(number), "--seat", f"expert-{number}", "--experts", mine)
            shards.append(started.start("expert_workers", *given, *flags, before=network.command(number)))
        addresses = [shard.address() for shard in shards]
        longest = max(options.prefill, _PROMPT + options.decode) + 1
        asked = ("--max-model-len", longest, "--max-micro-batches", 2, "--layer-deadline-s", 60, "--shards", *addresses)
        yield started.start("attention_workers", *given, *asked, before=network.command(0)).address()


class Client:
    """A process on the attention worker's machine that measures what it is asked for."""

    def __init__(self, network: Network, address: str, options: argparse.Namespace, token: str) -> None:
        given = [f"--{name}={getattr(options, name)}" for name in ("concurrency", "decode", "prefill")]
        command = network.command(0, sys.executable, __file__, "--here", address, *given)
        environ = os.environ | {"EXPERTFLEET_CLUSTER_TOKEN": token}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environ, text=True)

    def measure(self, what: str) -> float:
        """Tokens/s: ``one`` or ``many`` sequences that decode, or a ``prefill``."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(what, file=self._process.stdin, flush=True)
        if not (told := self._process.stdout.readline()):
            sys.exit("bench_network: what measures has ended")
        return float(told)

    def close(self) -> None:
        with self._process:
            self._process.kill()  # also where it still waits for a fleet that has ended


async def measure_here(address: str, options: argparse.Namespace) -> None:
    """Answers each line of stdin; this process is on the attention worker's machine."""
    async with security.open_channel(address, []) as channel:
        stub = generate_pb2_grpc.AttentionWorkerStub(channel)
        await asyncio.wait_for(_served(stub), _READY_WITHIN_S)

        async def generate(prompt: int, tokens: int) -> list[float]:
            ids = [random.randrange(256) for _ in range(prompt)]
            greedy = generate_pb2.Sampling(top_p=1.0)
            request = generate_pb2.GenerateRequest(
                request_id="bench", prompt_ids=ids, max_tokens=tokens, sampling=greedy
            )
            return [time.perf_counter() async for _ in stub.Generate(request)]

        async def decoded(sequences: int) -> float:
            times = await asyncio.gather(*(generate(_PROMPT, options.decode) for _ in range(sequences)))
            wall = max(map(max, times)) - min(each[0] for each in times)
            return float(sequences * (options.decode - 1) / wall)

        async def prefilled() -> float:
            began = time.perf_counter()
            return float(options.prefill / ((await generate(options.prefill, 1))[0] - began))

        measures = {"one": lambda: decoded(1), "many": lambda: decoded(options.concurrency), "prefill": prefilled}
        while what := (await asyncio.to_thread(sys.stdin.readline)).strip():
            print(await measures[what](), flush=True)


async def _served(stub: generate_pb2_grpc.AttentionWorkerStub) -> None:
    """Returns when the worker can reach every expert."""
    while True:
        report = await stub.Describe(generate_pb2.DescribeWorkerRequest(), wait_for_ready=True)
        if report.epoch.counter:
            return
        if report.state == "failed":
            sys.exit(f"bench_network: the attention worker failed: {report.error}")
        await asyncio.sleep(0.2)


def carried(config: ModelConfig, machines: int, gbit: float, round_trip_ms: float, tokens: int) -> float:
    """Tokens/s that the attention worker's link can carry in steps of ``tokens``: each route's result comes back over it, layer
    after layer; what goes out is less. Its own machine's shard does not pass it."""
    routes = tokens * config.top_k * (machines - 1) / machines
    seconds = round_trip_ms / 1e3 + (8 * routes * config.hidden_size * 2 / (gbit * 1e9) if gbit else 0.0)
    return tokens / (len(config.moe_layers) * seconds) if seconds else float("inf")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", type=Path, help="a checkpoint; a slice of K2-Thinking's dimensions is made if not given"
    )
    parser.add_argument("--experts", type=int, default=48, help="of the slice that is made")
    parser.add_argument("--machines", type=int, default=4)
    parser.add_argument("--gbit", type=float, nargs="+", default=[1, 10, 25], help="0: no limit")
    parser.add_argument("--round-trip-ms", type=float, nargs="+", default=[0.1, 0.5, 2], help="0: no delay")
    parser.add_argument("--loss-percent", type=float, default=0.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--decode", type=int, default=32, help="tokens decoded by each sequence")
    parser.add_argument("--prefill", type=int, default=2048, help="tokens of a prompt that is prefilled")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--here", metavar="ADDRESS", help=argparse.SUPPRESS)
    options: Any = parser.parse_args()
    if options.here:
        security.secure(security.WireSecurity(None, os.environ["EXPERTFLEET_CLUSTER_TOKEN"]))
        asyncio.run(measure_here(options.here, options))
        return
    signal.signal(signal.SIGTERM, lambda *caught: sys.exit(1))  # what was made is removed
    if options.machines < 2:
        sys.exit(f"bench_network: --machines: {options.machines} is not 2 or more, and one alone has no network")
    try:
        for gbit, round_trip_ms in itertools.product(options.gbit, options.round_trip_ms):
            Link(gbit=gbit, delay_ms=round_trip_ms / 2, loss_percent=options.loss_percent)
        with tempfile.TemporaryDirectory(prefix="bench") as folder:
            if options.model is None:
                options.model = Path(folder) / "k2"
                make_tiny(options.model, like="kimi-k2-thinking", layers=2, experts=options.experts, vocab=512)
            compare(options, Path(folder))
    except (NetworkError, ValueError) as error:
        sys.exit(f"bench_network: {error}")


def compare(options: argparse.Namespace, folder: Path) -> None:
    config = ModelConfig.from_dir(options.model)
    print(
        "gbit,round_trip_ms,link,found_gbit,found_ms,decode_1,floor,share,decode_many,floor,share,prefill,floor,share"
    )
    with measured(options, folder / "free") as (_, free), measured(options, folder / "slow") as (network, slow):
        for round_trip, gbit in itertools.product(sorted(options.round_trip_ms), options.gbit):
            for _ in range(_LAID_AT_MOST):
                link = lay(network, options.machines, gbit, round_trip, options.loss_percent)
                if link.is_made(gbit, round_trip):
                    break
            if not link.is_no_better(gbit, round_trip):
                print(f"# {gbit:g} Gbit/s, round trip {round_trip:g} ms: not made: {link}", flush=True)
                continue
            network.change(0, loss_percent=options.loss_percent)
            made = "made" if link.is_made(gbit, round_trip) else "worse"
            told = [f"{gbit:g}", f"{round_trip:g}", made, f"{link.gbit:.2f}", f"{link.round_trip_ms:.3f}"]
            found: dict[str, list[tuple[float, float]]] = {what: [] for what in ("one", "many", "prefill")}
            for _, (what, values) in itertools.product(range(options.rounds), found.items()):
                values.append((free.measure(what), slow.measure(what)))
            for tokens, values in zip((1, options.concurrency, 512), found.values(), strict=True):
                carries = carried(config, options.machines, gbit, round_trip, tokens)
                figures = [
                    (reached, floor := min(unlimited, carries), reached / floor) for unlimited, reached in values
                ]
                reached, floor, share = map(statistics.median, zip(*figures, strict=True))
                told += [f"{reached:.1f}", f"{floor:.1f}", f"{share:.2f}"]
            print(*told, sep=",", flush=True)


@contextlib.contextmanager
def measured(options: argparse.Namespace, folder: Path) -> Iterator[tuple[Network, Client]]:
    """A network with a fleet that serves, and who measures it."""
    token = secrets.token_hex(16)
    folder.mkdir()
    with (
        networked(options.machines) as network,
        fleet(network, options, folder, token) as address,
        contextlib.closing(Client(network, address, options, token)) as client,
    ):
        client.measure("one")  # everything is there and was used once
        yield network, client


def lay(network: Network, machines: int, gbit: float, round_trip_ms: float, loss_percent: float) -> Found:
    """What the network comes to, before it loses anything: the delay is shorter by what the way takes without."""
    for number in range(machines):
        network.change(number, gbit=gbit)
    network.change(0, delay_ms=round_trip_ms / 2, loss_percent=loss_percent)  # what does this is in the way from now on
    network.change(0, delay_ms=0.0, loss_percent=0.0)
    if round_trip_ms:
        way_ms = probe(network, 0, 1).round_trip_ms
        network.change(0, delay_ms=max(0.0, round_trip_ms - way_ms) / 2)
    return probe(network, 0, 1)


if __name__ == "__main__":
    main()
