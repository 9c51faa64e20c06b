"""Tokens per second of running fleets at several concurrencies, measured at the client, as CSV.

    python benchmarks/bench_serving.py new=http://127.0.0.1:8000 old=http://127.0.0.1:8001 --concurrency 1 8 --rounds 5

In each round every fleet is measured at every concurrency, the fleets in turn, so that a drifting machine moves all of
them. The ratio is to the first fleet at the same concurrency in the same round; `--prompt-only` measures how fast a prompt
is read instead. Prompts are random token ids, answers have a fixed length. A server of another make that has OpenAI's
/v1/completions can be one of the fleets.
"""

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections import defaultdict
from dataclasses import dataclass

from openai import AsyncOpenAI


@dataclass(frozen=True)
class Fleet:
    name: str
    client: AsyncOpenAI
    model: str

    @staticmethod
    async def at(named: str) -> "Fleet":
        name, _, url = named.rpartition("=")
        client = AsyncOpenAI(base_url=url + "/v1", api_key="none", timeout=3600, max_retries=0)
        return Fleet(name or url, client, (await client.models.list()).data[0].id)

    async def answer(self, prompt_tokens: int, max_tokens: int) -> int:
        """How many tokens came."""
        answer = await self.client.completions.create(
            model=self.model,
            prompt=[random.randrange(300, 2000) for _ in range(prompt_tokens)],
            max_tokens=max_tokens,
            temperature=0,
            extra_body={"ignore_eos": True},
        )
        assert answer.usage is not None
        return answer.usage.completion_tokens


async def tokens_per_s(fleet: Fleet, count: int, arguments: argparse.Namespace) -> float:
    began = time.perf_counter()
    if arguments.prompt_only:
        await asyncio.gather(*(fleet.answer(arguments.prompt_tokens, 1) for _ in range(count)))
        return count * arguments.prompt_tokens / (time.perf_counter() - began)
    calls = (fleet.answer(arguments.prompt_tokens, arguments.max_tokens) for _ in range(count))
    return sum(await asyncio.gather(*calls)) / (time.perf_counter() - began)


async def run(arguments: argparse.Namespace) -> None:
    fleets = [await Fleet.at(named) for named in arguments.fleets]
    for fleet in fleets:
        await tokens_per_s(fleet, 1, arguments)
    rates: dict[tuple[int, str], list[float]] = defaultdict(list)
    for _ in range(arguments.rounds):
        for count in arguments.concurrency:
            for fleet in fleets:
                rates[count, fleet.name].append(await tokens_per_s(fleet, count, arguments))
    print("fleet,concurrency,tokens_per_s_min,tokens_per_s_median,tokens_per_s_max,ratio_min,ratio_median,ratio_max")
    for (count, name), values in rates.items():
        ratios = [value / base for value, base in zip(values, rates[count, fleets[0].name], strict=True)]
        columns = [each(series) for series in (values, ratios) for each in (min, statistics.median, max)]
        print(name, count, *(f"{column:.2f}" for column in columns), sep=",")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("fleets", nargs="+", metavar="[NAME=]URL", help="public URL of a fleet, and what to call it")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=100)
    parser.add_argument("--prompt-only", action="store_true", help="tokens of prompts per second, answers of one token")
    parser.add_argument("--rounds", type=int, default=5)
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
