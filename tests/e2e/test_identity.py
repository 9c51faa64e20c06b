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


def fleet(start: Callable[..., Any], checkpoint: Path, num_shards: int, prefixes: str = "--no-prefix-caching") -> str:
    """The attention worker's address; experts are dealt out to ``num_shards`` processes, whose lanes are of either kind.

    Nothing is taken from the prefix cache, so that all is computed, unless ``prefixes`` says so.
    """
    shards = []
    for number in range(num_shards):
        held = ",".join(str(expert) for expert in range(number, 64, num_shards))
        shards.append(start("expert_workers", "--model", checkpoint, "--seat", f"expert-{number}", "--experts", held))
    addresses = [shard.address() for shard in shards]
    lanes = random.choice(("--local-lanes", "--no-local-lanes")) if num_shards != 2 else "--no-local-lanes"
    attention = start(
        "attention_workers", "--model", checkpoint, "--shards", *addresses, "--threads", 1, lanes, prefixes
    )
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


def test_a_prefix_from_the_cache_changes_no_bit(start: Callable[..., Any], small_checkpoint: Path) -> None:
    rng = random.Random(seed := random.randrange(1 << 30))
    (begun,) = requests(1, seed)
    begun.prompt_ids[:] = [rng.randrange(1000) for _ in range(600)]
    begun.max_tokens = 180
    computed = fleet(start, small_checkpoint, 1)
    caching = fleet(start, small_checkpoint, 1, "--prefix-caching")
    first = asyncio.run(generate(caching, [begun], at_once=False))[0]
    # The prompt and the answer fill three pages; a question that goes on from there, and ones that leave the way earlier.
    said = [*begun.prompt_ids, *(token for token, _, _ in first)]
    wanted = [begun, *requests(3, seed)]
    wanted[1].prompt_ids[:] = [*said, *rng.choices(range(1000), k=50)]
    wanted[2].prompt_ids[:] = [*said[:400], *rng.choices(range(1000), k=200)]
    wanted[3].prompt_ids[:], wanted[3].cache_salt = wanted[1].prompt_ids, "another's"
    for at_once in (False, True):
        again = asyncio.run(generate(caching, wanted, at_once))
        assert again == asyncio.run(generate(computed, wanted, at_once)), f"seed {seed}, at once: {at_once}"
        assert again[0] == first
    # By now each has been there, also the other salt's.
    assert asyncio.run(num_cached(caching, wanted)) == [512, 768, 512, 768]
    assert asyncio.run(num_cached(computed, wanted)) == [0, 0, 0, 0]
    wanted[2].prompt_ids[:] = [*said[:400], *rng.choices(range(1000), k=200)]
    wanted[3].cache_salt = "a third's"
    assert asyncio.run(num_cached(caching, wanted[2:])) == [256, 0]
    report = asyncio.run(describe(caching))
    assert report.metrics["prefix_cache_hits_total"] >= 512 + 768 + 256


async def num_cached(address: str, wanted: list[generate_pb2.GenerateRequest]) -> list[int]:
    found = []
    async with grpc.aio.insecure_channel(address) as channel:
        for request in wanted:
            replies = generate_pb2_grpc.AttentionWorkerStub(channel).Generate(request)
            first, *_ = [reply.num_cached_tokens async for reply in replies]
            found.append(first)
    return found


async def resume(address: str, request: generate_pb2.GenerateRequest) -> Stream:
    stream: Stream = []
    async with grpc.aio.insecure_channel(address) as channel:
        async for reply in generate_pb2_grpc.AttentionWorkerStub(channel).Generate(request):
            for token, logprob in zip(reply.token_ids, reply.logprobs, strict=True):
                stream.append((token, logprob.logprob, tuple(logprob.top_logprobs)))
    return stream
