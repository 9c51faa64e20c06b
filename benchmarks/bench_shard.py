"""INT4 experts against the same weights in bfloat16, decoding through live shards over their lanes.

One layer of Kimi-K2-Thinking's dimensions is written to a temporary folder, and one shard process for each of the two loads it.
A call sends one frame of --tokens tokens, each with its top-8 of the experts held, and waits for the results; the shards
take turns, call by call. Prints a CSV line per number of tokens: medians, p90 and the ratio of the medians.
"""

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import torch
from shard_process import ShardProcess

from expertfleet.checkpoint.make_tiny import make_tiny
from expertfleet.checkpoint.tensors import Checkpoint
from expertfleet.proto.codec import Dispatch, Hello, Result, decode, encode_dispatch, encode_hello, short_fingerprint
from expertfleet.proto.rows import Rows
from expertfleet.transport.lane import PATH, channel_options

_LIMIT = 1 << 27
_DEADLINE_US = 60_000_000
_PAUSE_S = 0.02  # torch's threads spin for a while after a call and would take the other shard's processors
LAYER = 1


class Lane:
    """A shard process and the lane to it."""

    def __init__(self, shard: ShardProcess, checkpoint: Checkpoint) -> None:
        self._shard, self._fingerprint = shard, checkpoint.fingerprint
        self._frames = 0

    async def connect(self) -> None:
        self._channel = grpc.aio.insecure_channel(self._shard.address, options=channel_options(_LIMIT))
        self._lane = self._channel.stream_stream(PATH)()
        await self._lane.write(encode_hello(Hello("bench", self._fingerprint, "bfloat16", _LIMIT)))
        await self._lane.read()

    async def seconds(self, x: torch.Tensor, experts: torch.Tensor) -> float:
        """x [tokens, H], experts [tokens, top-k]: from the frame's making to its results."""
        began = time.perf_counter()
        self._frames += 1
        rows = np.repeat(np.arange(len(x), dtype=np.int32), experts.shape[1])
        short = short_fingerprint(self._fingerprint)
        ids = experts.flatten().int().numpy()
        frame = encode_dispatch(
            Dispatch(self._frames, short, (1, 1), LAYER, 0, _DEADLINE_US, Rows.of(x), rows.data, ids.data)
        )
        await self._lane.write(frame)
        left = len(ids)
        while left:
            answer = decode(await self._lane.read(), _LIMIT)
            assert isinstance(answer, Result), answer
            left -= answer.rows.count
        return time.perf_counter() - began

    async def end(self) -> None:
        await self._channel.close()
        self._shard.end()


async def measure(options: argparse.Namespace, folder: Path) -> None:
    model = folder / "k2"
    shape = {"hidden": options.hidden, "expert_width": options.expert_width}
    make_tiny(model, like="kimi-k2-thinking", layers=2, experts=options.experts, dense_width=512, vocab=512, **shape)
    checkpoint = Checkpoint.open(model)
    shards = [ShardProcess(model, [name], name, options.threads) for name in options.compared]
    lanes = [Lane(shard, checkpoint) for shard in shards]
    for lane in lanes:
        await lane.connect()
    print("tokens,calls," + ",".join(f"{name}_ms,{name}_p90_ms" for name in options.compared) + ",ratio")
    for tokens in options.tokens:
        times: list[list[float]] = [[] for _ in lanes]
        for call in range(options.calls + 1):
            x = torch.randn(tokens, checkpoint.config.hidden_size).bfloat16()
            experts = torch.stack([torch.randperm(options.experts)[: checkpoint.config.top_k] for _ in range(tokens)])
            for lane, seconds in zip(lanes, times, strict=True):
                await asyncio.sleep(_PAUSE_S)
                took = await lane.seconds(x, experts)
                if call:  # the first is not counted
                    seconds.append(took)
        print(_line(tokens, times), flush=True)
    for lane in lanes:
        await lane.end()


def _line(tokens: int, times: list[list[float]]) -> str:
    medians = [statistics.median(seconds) for seconds in times]
    shown = ",".join(
        f"{1e3 * median:.2f},{1e3 * sorted(seconds)[int(0.9 * len(seconds))]:.2f}"
        for median, seconds in zip(medians, times, strict=True)
    )
    return f"{tokens},{len(times[0])},{shown},{medians[-1] / medians[0]:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--compared",
        nargs=2,
        default=["cpu-native", "bf16"],
        help="two of shard_process.py; the ratio is second ÷ first",
    )
    parser.add_argument("--experts", type=int, default=32)
    parser.add_argument("--hidden", type=int, help="another model's, not K2's")
    parser.add_argument("--expert-width", type=int, help="another model's, not K2's")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--calls", type=int, default=40)
    options: Any = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench") as folder:
        asyncio.run(measure(options, Path(folder)))


if __name__ == "__main__":
    main()
