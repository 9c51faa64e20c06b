"""Decoding and prefill over a network that is slow on purpose: every machine is a network namespace with a link of its own.

Needs root, ``ip`` and ``tc``, and leaves nothing behind. Every link has the rate; delay and loss are those of the attention worker's
link, which everything passes. Before a network is used, a plain connection measures what it really is; what differs from what was
asked is passed over, and listed as "not made" with that as its limit. Where the kernel has no ``netem``, an emulator of ours holds
packets back, which takes processor time from what is measured: of a core, 0.1 to 0.2 s for a gigabit.

Each machine runs one expert shard, the first one also the attention worker, which asks all of them over the network. For every rate and
round trip it prints decoded tokens/s of 1 and of --concurrency sequences and prefilled tokens/s, and each as a share of the floor:
the smaller of what the same processes reach with no limit and of what the attention worker's link can carry.

A slice of K2-Thinking (``--model``, of ``expertfleet checkpoint make-tiny --like kimi-k2-thinking --layers 2``) takes some minutes
a cell on two cores; --rounds, --decode and --prefill shorten it.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
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
from expertfleet.membership import wire
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


async def measure_here(address: str, options: argparse.Namespace) -> dict[str, float]:
    """Medians; this process is on the attention worker's machine."""
    async with wire.open_channel(address, []) as channel:
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

        await decoded(1)
        found: dict[str, list[float]] = {"one": [], "many": [], "prefill": []}
        for _ in range(options.rounds):
            found["one"].append(await decoded(1))
            found["many"].append(await decoded(options.concurrency))
            found["prefill"].append(await prefilled())
    return {name: statistics.median(values) for name, values in found.items()}


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
        wire.secure(wire.WireSecurity(None, os.environ["EXPERTFLEET_CLUSTER_TOKEN"]))
        print(json.dumps(asyncio.run(measure_here(options.here, options))))
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
    token, config = secrets.token_hex(16), ModelConfig.from_dir(options.model)
    environ = os.environ | {"EXPERTFLEET_CLUSTER_TOKEN": token}
    print("gbit,round_trip_ms,found_gbit,found_ms,decode_1,floor,share,decode_many,floor,share,prefill,floor,share")
    with networked(options.machines) as network, fleet(network, options, folder, token) as address:
        unlimited: dict[str, float] = {}
        for round_trip, gbit in [(0.0, 0.0), *itertools.product(sorted(options.round_trip_ms), options.gbit)]:
            loss_percent = options.loss_percent if unlimited else 0.0
            for _ in range(_LAID_AT_MOST):
                link = lay(network, options.machines, gbit, round_trip, loss_percent)
                if link.is_made(gbit, round_trip):
                    break
            if not link.is_made(gbit, round_trip):
                print(f"# {gbit:g} Gbit/s, round trip {round_trip:g} ms: not made: limit {link}", flush=True)
                continue
            network.change(0, loss_percent=loss_percent)
            given = [f"--{name}={getattr(options, name)}" for name in ("concurrency", "decode", "prefill", "rounds")]
            command = network.command(0, sys.executable, __file__, "--here", address, *given)
            done = subprocess.run(command, stdout=subprocess.PIPE, env=environ, check=True)
            found = json.loads(done.stdout)
            unlimited = unlimited or found
            told = [f"{gbit:g}", f"{round_trip:g}", f"{link.gbit:.2f}", f"{link.round_trip_ms:.3f}"]
            for name, tokens in (("one", 1), ("many", options.concurrency), ("prefill", 512)):
                floor = min(unlimited[name], carried(config, options.machines, gbit, round_trip, tokens))
                told += [f"{found[name]:.1f}", f"{floor:.1f}", f"{found[name] / floor:.2f}"]
            print(*told, sep=",", flush=True)


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
