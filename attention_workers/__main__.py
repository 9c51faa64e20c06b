"""``python -m expertfleet.attention_workers``: one attention worker as a plain process."""

from ..settings.process import run_role
from .config import AttentionConfig
from .server import AttentionServer


def main() -> None:
    run_role("attention_workers", AttentionConfig, AttentionServer)


if __name__ == "__main__":
    main()
