"""``python -m expertfleet.expert_workers``: one expert shard as a plain process."""

from ..settings.process import run_role
from .config import ExpertConfig
from .server import ExpertServer


def main() -> None:
    run_role("expert_workers", ExpertConfig, ExpertServer)


if __name__ == "__main__":
    main()
