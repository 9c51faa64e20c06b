"""Tokens per second of a running fleet at several concurrencies, measured at the client, as CSV.

    python benchmarks/bench_serving.py http://127.0.0.1:8000 --concurrency 1 8 --rounds 5

The concurrencies alternate within each round, so that a drifting machine moves all of them; the ratio column compares
with the first one of the same round. Prompts are random token ids, answers have a fixed length.
"""

import argparse
import asyncio
import random
import statistics
import sys
import time

from openai import AsyncOpenAI


async def one(client: AsyncOpenAI, model: str, prompt_tokens: int, max_tokens: int) -> int:
    answer = await client.completions.create(
        model=model,
        prompt=[random.randrange(200) for _ in range(prompt_tokens)],
        max_tokens=max_tokens,
        temperature=0,
        extra_body={"ignore_eos": True, "return_token_ids": True},
    )
    return len(answer.choices[0].token_ids)  # type: ignore[attr-defined]


async def tokens_per_s(client: AsyncOpenAI, model: str, count: int, arguments: argparse.Namespace) -> float:
    began = time.perf_counter()
    calls = (one(client, model, arguments.prompt_tokens, arguments.max_tokens) for _ in range(count))
    return sum(await asyncio.gather(*calls)) / (time.perf_counter() - began)


async def run(arguments: argparse.Namespace) -> None:
    client = AsyncOpenAI(base_url=arguments.url + "/v1", api_key="none")
    model = (await client.models.list()).data[0].id
    await tokens_per_s(client, model, max(arguments.concurrency), arguments)
    rates: dict[int, list[float]] = {count: [] for count in arguments.concurrency}
    for _ in range(arguments.rounds):
        for count in arguments.concurrency:
            rates[count].append(await tokens_per_s(client, model, count, arguments))
    first = rates[arguments.concurrency[0]]
    print("concurrency,tokens_per_s_min,tokens_per_s_median,tokens_per_s_max,ratio_min,ratio_median,ratio_max")
    for count, values in rates.items():
        ratios = [value / base for value, base in zip(values, first, strict=True)]
        columns = [each(series) for series in (values, ratios) for each in (min, statistics.median, max)]
        print(count, *(f"{column:.2f}" for column in columns), sep=",")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("url", help="public URL of the fleet")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
