"""``python -m expertfleet.attention_workers``: one attention worker as a plain process."""

from ..membership.entrance import check_entrance
from ..settings.process import run_role
from .config import AttentionConfig
from .server import AttentionServer


def main() -> None:
    run_role("attention_workers", AttentionConfig, _make_server)


def _make_server(config: AttentionConfig) -> AttentionServer:
    check_entrance(config.wire, {"host": config.host}, config.controller)
    return AttentionServer(config)


if __name__ == "__main__":
    main()
