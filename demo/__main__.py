"""``make demo``: a small fleet on the bundled model, two conversations through its API, and a clean end.

Knows nothing of how the fleet works: it uses the command line and the official client, as a user would.
"""

import asyncio
import sys
import tempfile
import time
from pathlib import Path

from ..cluster.commands.status import fetch_status, table
from .bundled import NANO_K2
from .conversation import Client, Reply
from .questions import DECIMALS, WEATHER, ask_decimals, ask_weather
from .served import Served

_FLAGS = ("--attention-workers=1", "--expert-shards=3", "--max-model-len=4096", "--cache-gib=0.25", "--drain-s=5")
_MAX_TOKENS = 200
# Workers report twice a second; after this long the counters are those of both conversations.
_REPORT_S = 1.1
_COLUMNS = ("role", "seat", "pid", "experts", "tokens")


def main() -> int:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="d") as folder:
        tmp = Path(folder, "t")
        tmp.mkdir()
        served = Served(NANO_K2, tmp, *_FLAGS)
        try:
            right = asyncio.run(_talk(served.wait_ready()))
            status, left = served.end()
        finally:
            served.kill()
    print(
        f"ended with status {status}, left behind: {', '.join(left) or 'nothing'}; {time.monotonic() - began:.1f} s in all"
    )
    return 0 if right and not status and not left else 1


async def _talk(url: str) -> bool:
    """Whether both answers were right."""
    print(f"ready {url}")
    client = Client(url, temperature=0, max_tokens=_MAX_TOKENS)
    try:
        weather, weather_right = await ask_weather(client)
        _show(WEATHER, weather, weather_right)
        decimals, decimals_right = await ask_decimals(client)
        _show(DECIMALS, decimals, decimals_right)
    finally:
        await client.close()
    await asyncio.sleep(_REPORT_S)
    workers = fetch_status(url)["workers"]
    print("\n".join(table([_COLUMNS, *([worker[column] for column in _COLUMNS] for worker in workers)])), end="\n\n")
    return weather_right and decimals_right


def _show(question: str, replies: list[Reply], right: bool) -> None:
    print(f"\nuser: {question}")
    for reply in replies:
        print(f"  thinking: {reply.reasoning}")
        for call in reply.calls:
            print(f"  calls: {call.name}({call.arguments})")
        if reply.content:
            print(f"  answer: {reply.content}")
    num_tokens, took_s = sum(reply.num_tokens for reply in replies), sum(reply.took_s for reply in replies)
    verdict = "right" if right else "WRONG"
    print(f"  {verdict}; {num_tokens} tokens in {took_s:.2f} s: {num_tokens / took_s:.1f} tokens/s\n")


if __name__ == "__main__":
    sys.exit(main())
