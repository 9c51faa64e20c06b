"""Figures and names that the documents say in more than one place."""

import inspect
import re
from pathlib import Path

from expertfleet.expert_workers.runtime import Runtime
from expertfleet.kernels import expert_layer

ROOT = Path(__file__).parents[1]


def lines_with(document: str, words: str) -> list[str]:
    return [line for line in (ROOT / document).read_text(encoding="utf-8").splitlines() if words in line]


def test_one_measurement_has_one_figure() -> None:
    (readme,), (numerics,) = (
        lines_with(name, "tests/e2e/test_logits.py") for name in ("docs/measurements.md", "docs/numerics.md")
    )
    figures = re.findall(r"\d\.\de-\d", readme)
    assert len(figures) == 2
    assert re.findall(r"\d\.\de-\d", numerics) == figures


def test_the_architecture_names_what_a_shard_calls() -> None:
    (sentence,) = lines_with("docs/architecture.md", "`ExpertLayer.")
    called = re.findall(r"`ExpertLayer\.(\w+)`", sentence)
    assert called == ["apply_at"]
    assert hasattr(expert_layer.ExpertLayer, called[0])
    assert f".{called[0]}(" in inspect.getsource(Runtime)


def test_every_file_that_a_document_names_is_there() -> None:
    documents = [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"]
    named = {
        path
        for document in documents
        for path in re.findall(
            r"`((?:[a-z_0-9]+/)+[a-z_0-9]+\.(?:py|cpp|h|md|csv|toml|proto|yaml))`", document.read_text()
        )
    }
    assert len(named) > 50
    assert not [path for path in sorted(named) if not (ROOT / path).exists()]
