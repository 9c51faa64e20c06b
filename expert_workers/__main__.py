"""``python -m expertfleet.expert_workers``: one expert shard as a plain process."""

from ..membership.entrance import check_entrance
from ..settings.process import run_role
from .config import ExpertConfig
from .server import ExpertServer


def main() -> None:
    run_role("expert_workers", ExpertConfig, _make_server)


def _make_server(config: ExpertConfig) -> ExpertServer:
    check_entrance(config.wire, {"host": config.host}, config.controller)
    return ExpertServer(config)


if __name__ == "__main__":
    main()
