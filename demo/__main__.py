"""``make demo``: a small fleet on a generated checkpoint, two chats through its API, and a clean end.

Knows nothing of how the fleet works: it uses the command line and the official client, as a user would.
"""

import asyncio
import sys
import tempfile
import time
from pathlib import Path

from ..checkpoint.make_tiny import make_tiny
from ..cluster.status import fetch_status, table
from .conversation import Client, Reply
from .served import Served

_FLAGS = ("--attention-workers=1", "--expert-shards=3", "--max-model-len=2048", "--cache-gib=0.25", "--drain-s=5")
_QUESTIONS = ("What is a mixture of experts?", "And what does a router do?")
_MAX_TOKENS = 48
# Workers report twice a second; after this long the counters are those of both chats.
_REPORT_S = 1.1
_COLUMNS = ("role", "seat", "pid", "experts", "tokens")


def main() -> int:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="d") as folder:
        model, tmp = Path(folder, "tiny"), Path(folder, "t")
        tmp.mkdir()
        make_tiny(model, seed=1)
        print("The model's weights are random, so the answers are noise; the way is real.")
        served = Served(model, tmp, *_FLAGS)
        try:
            asyncio.run(_talk(served.wait_ready()))
            status, left = served.end()
        finally:
            served.kill()
    print(
        f"ended with status {status}, left behind: {', '.join(left) or 'nothing'}; {time.monotonic() - began:.1f} s in all"
    )
    return 1 if status or left else 0


async def _talk(url: str) -> None:
    print(f"ready {url}")
    client = Client(url, max_tokens=_MAX_TOKENS)
    try:
        for question in _QUESTIONS:
            _show(question, await client.answer([{"role": "user", "content": question}]))
    finally:
        await client.close()
    await asyncio.sleep(_REPORT_S)
    workers = fetch_status(url)["workers"]
    print("\n".join(table([_COLUMNS, *([worker[column] for column in _COLUMNS] for worker in workers)])), end="\n\n")


def _show(question: str, reply: Reply) -> None:
    print(f"\nuser: {question}")
    if reply.reasoning:
        print(f"  thinking: {reply.reasoning!r}")
    print(f"  answer: {reply.content!r}")
    rate = reply.num_tokens / reply.took_s
    print(f"  {reply.num_tokens} tokens in {reply.took_s:.2f} s: {rate:.1f} tokens/s\n")


if __name__ == "__main__":
    sys.exit(main())
