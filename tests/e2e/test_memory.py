"""An expert shard's memory against the checkpoint's own bytes of the experts it holds, after all of them were used."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
import torch

from expertfleet.checkpoint.make_tiny import make_tiny
from expertfleet.checkpoint.tensors import Checkpoint
from expertfleet.proto.codec import (
    Dispatch,
    Hello,
    Result,
    decode,
    encode_dispatch,
    encode_hello,
    short_fingerprint,
)
from expertfleet.proto.generated import expert_pb2, expert_pb2_grpc
from expertfleet.proto.rows import Rows
from expertfleet.transport.lane import PATH, channel_options

LIMIT = 1 << 26


async def use_every_expert(address: str, checkpoint: Checkpoint, experts: int) -> None:
    config = checkpoint.config
    async with grpc.aio.insecure_channel(address, options=channel_options(LIMIT)) as channel:
        stub = expert_pb2_grpc.ExpertShardStub(channel)
        while (await stub.Describe(expert_pb2.DescribeRequest())).state != "ready":
            await asyncio.sleep(0.1)
        stream = channel.stream_stream(PATH)()
        await stream.write(encode_hello(Hello("test", checkpoint.fingerprint, "bfloat16", LIMIT)))
        await stream.read()
        for layer in config.moe_layers:
            for expert in range(experts):
                frame = Dispatch(
                    1 + expert,
                    short_fingerprint(checkpoint.fingerprint),
                    (1, 1),
                    layer,
                    0,
                    60_000_000,
                    Rows.of(torch.randn(2, config.hidden_size).bfloat16()),
                    np.array([0, 1], dtype=np.int32).data,
                    np.array([expert, expert], dtype=np.int32).data,
                )
                await stream.write(encode_dispatch(frame))
                assert isinstance(decode(await stream.read(), LIMIT), Result)


@pytest.mark.slow
def test_at_most_1_05_times_the_checkpoints_bytes(start: Callable[..., Any], tmp_path: Path) -> None:
    directory, experts = tmp_path / "model", 384
    make_tiny(directory, hidden=1024, layers=2, experts=experts, expert_width=512, dense_width=64, vocab=512)
    checkpoint = Checkpoint.open(directory)
    held = {"bare": 1, "full": experts}
    pss, peak = {}, {}
    for name, count in held.items():
        shard = start("expert_workers", "--model", directory, "--experts", f"0-{count - 1}")
        asyncio.run(use_every_expert(shard.address(), checkpoint, count))
        pss[name] = psutil.Process(shard.popen.pid).memory_full_info().pss
        peak[name] = peak_bytes(shard.popen.pid)
    added = (experts - 1) * checkpoint.config.expert_bytes
    ratio = (pss["full"] - pss["bare"]) / added
    peak_ratio = (peak["full"] - peak["bare"]) / added
    bare = pss["bare"] / 1e6
    print(f"{added / 1e6:.0f} MB of experts, {ratio:.3f} × their bytes, peak {peak_ratio:.3f} ×, bare {bare:.0f} MB")
    assert ratio <= 1.05, pss
    assert peak_ratio <= 1.15, peak


def peak_bytes(pid: int) -> int:
    """The most resident memory that the process ever had."""
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])
