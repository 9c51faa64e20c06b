"""The one error of this folder: a checkpoint that cannot be used as it lies on disk."""

from pathlib import Path


class CheckpointError(ValueError):
    """One line for people: ``FILE: TENSOR-or-KEY: what is wrong, with its value and what is allowed``."""

    def __init__(self, file: str | Path, name: str, problem: str, hint: str = "") -> None:
        """``hint``: what is there instead, or what to do."""
        problem = f"{problem}; {hint}" if hint else problem
        super().__init__(f"{file}: {name}: {problem}" if name else f"{file}: {problem}")
        self.file = str(file)
        self.name = name
        self.problem = problem
