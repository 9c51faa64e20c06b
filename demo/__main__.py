"""``make demo``: a small fleet on a generated checkpoint, two chats through its API, and a clean end.

Knows nothing of how the fleet works: it uses the command line and the official client, as a user would.
"""

import sys
import tempfile
import time
from pathlib import Path

from ..checkpoint.make_tiny import make_tiny
from ..cluster.status import fetch_status, table
from .conversation import Chat, Client
from .served import Served

_FLAGS = ("--attention-workers=1", "--expert-shards=3", "--max-model-len=2048", "--cache-gib=0.25", "--drain-s=5")
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
        print("The model's weights are random until a trained one exists, so the answers are noise; the way is real.")
        served = Served(model, tmp, *_FLAGS)
        try:
            _talk(served.wait_ready())
            status, left = served.end()
        finally:
            served.kill()
    print(
        f"ended with status {status}, left behind: {', '.join(left) or 'nothing'}; {time.monotonic() - began:.1f} s in all"
    )
    return 1 if status or left else 0


def _talk(url: str) -> None:
    print(f"ready {url}")
    client = Client(url, _MAX_TOKENS)
    _show("whole", client.ask("What is a mixture of experts?"))
    _show("streamed", client.ask_streaming("And what does a router do?"))
    client.close()
    time.sleep(_REPORT_S)
    workers = fetch_status(url)["workers"]
    print("\n".join(table([_COLUMNS, *([worker[column] for column in _COLUMNS] for worker in workers)])), end="\n\n")


def _show(way: str, chat: Chat) -> None:
    print(f"\n[{way}] {chat.question}")
    if chat.reasoning:
        print(f"  thinking: {chat.reasoning!r}")
    print(f"  answer: {chat.answer!r}")
    print(f"  {chat.num_tokens} tokens in {chat.took_s:.2f} s: {chat.tokens_per_s:.1f} tokens/s\n")


if __name__ == "__main__":
    sys.exit(main())
