from pathlib import Path

import pytest
from image import build_opt


@pytest.fixture(scope="session")
def opt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """/opt of the image."""
    return build_opt(tmp_path_factory.mktemp("image"))
