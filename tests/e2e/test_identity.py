"""Token streams do not depend on the number of shards or on who else is served: compared bit for bit."""

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from expertfleet.proto.generated import generate_pb2, generate_pb2_grpc

Stream = list[tuple[int, float, tuple[float, ...]]]


def requests(count: int, seed: int) -> list[generate_pb2.GenerateRequest]:
    """Random prompts, every second one sampled."""
    rng = random.Random(seed)
    return [
        generate_pb2.GenerateRequest(
            request_id=f"r{number}",
            prompt_ids=[rng.randrange(1000) for _ in range(rng.choice((3, 40, 300)))],
            sampling=generate_pb2.Sampling(seed=rng.getrandbits(32), temperature=number % 2, top_p=0.95),
            max_tokens=24,
            logprobs=True,
            num_top_logprobs=5,
        )
        for number in range(count)
    ]


async def generate(address: str, wanted: list[generate_pb2.GenerateRequest], at_once: bool) -> list[Stream]:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = generate_pb2_grpc.AttentionWorkerStub(channel)
        if at_once:
            return list(await asyncio.gather(*(collect(stub, request) for request in wanted)))
        return [await collect(stub, request) for request in wanted]


async def collect(stub: generate_pb2_grpc.AttentionWorkerStub, request: generate_pb2.GenerateRequest) -> Stream:
    stream: Stream = []
    async for reply in stub.Generate(request, wait_for_ready=True):
        for token, logprob in zip(reply.token_ids, reply.logprobs, strict=True):
            stream.append((token, logprob.logprob, tuple(logprob.top_logprobs)))
    assert len(stream) == request.max_tokens
    return stream


async def describe(address: str) -> Any:
    async with grpc.aio.insecure_channel(address) as channel:
        return await generate_pb2_grpc.AttentionWorkerStub(channel).Describe(generate_pb2.DescribeWorkerRequest())


def fleet(start: Callable[..., Any], checkpoint: Path, num_shards: int) -> str:
    """The attention worker's address; experts are dealt out to ``num_shards`` processes, whose lanes are of either kind."""
    shards = []
    for number in range(num_shards):
        held = ",".join(str(expert) for expert in range(number, 64, num_shards))
        shards.append(start("expert_workers", "--model", checkpoint, "--seat", f"expert-{number}", "--experts", held))
    addresses = [shard.address() for shard in shards]
    lanes = random.choice(("--local-lanes", "--no-local-lanes")) if num_shards != 2 else "--no-local-lanes"
    attention = start("attention_workers", "--model", checkpoint, "--shards", *addresses, "--threads", 1, lanes)
    return str(attention.ready_address())


def test_streams_are_bit_identical_for_1_2_and_5_shards_and_in_any_company(
    start: Callable[..., Any], small_checkpoint: Path
) -> None:
    seed = random.randrange(1 << 30)
    wanted = requests(9, seed)
    baseline: list[Stream] = []
    for num_shards in (1, 2, 5):
        address = fleet(start, small_checkpoint, num_shards)
        together = asyncio.run(generate(address, wanted, at_once=True))
        report = asyncio.run(describe(address))
        assert report.metrics["forward_sequences_max"] >= 8, dict(report.metrics)
        baseline = baseline or together
        assert together == baseline, f"seed {seed}, {num_shards} shards"
        alone = asyncio.run(generate(address, wanted[:3], at_once=False))
        assert alone == baseline[:3], f"seed {seed}, {num_shards} shards, alone"


def test_a_sequence_resumed_elsewhere_goes_on_identically(start: Callable[..., Any], small_checkpoint: Path) -> None:
    wanted = requests(4, random.randrange(1 << 30))
    address = fleet(start, small_checkpoint, 2)
    whole = asyncio.run(generate(address, wanted, at_once=True))
    for request, stream in zip(wanted, whole, strict=True):
        cut = random.randint(1, 20)
        resumed = generate_pb2.GenerateRequest()
        resumed.CopyFrom(request)
        resumed.generated_ids.extend(token for token, _, _ in stream[:cut])
        rest = asyncio.run(resume(address, resumed))
        assert rest == stream[cut:]


async def resume(address: str, request: generate_pb2.GenerateRequest) -> Stream:
    stream: Stream = []
    async with grpc.aio.insecure_channel(address) as channel:
        async for reply in generate_pb2_grpc.AttentionWorkerStub(channel).Generate(request):
            for token, logprob in zip(reply.token_ids, reply.logprobs, strict=True):
                stream.append((token, logprob.logprob, tuple(logprob.top_logprobs)))
    return stream
