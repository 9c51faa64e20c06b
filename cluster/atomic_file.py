"""A small file that outlives the process that wrote it. Knows nothing of what it says."""

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Whole or not at all, whatever happens meanwhile. Raises OSError."""
    draft = path.with_name(f"{path.name}.new")
    with draft.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
