import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from expertfleet.checkpoint.check import check
from expertfleet.checkpoint.files import CheckpointFiles
from expertfleet.gateway.config import GatewayConfig
from expertfleet.gateway.model import Model


def set_default(directory: Path, key: str, value: object) -> None:
    path = directory / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))


def fault(call: Callable[[], object]) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize(
    "damage",
    [
        lambda directory: set_default(directory, "eos_token_id", 163_586),
        lambda directory: set_default(directory, "temperature", 1000),
        lambda directory: set_default(directory, "top_p", 0.0),
        lambda directory: (directory / "chat_template.jinja").write_text("{{ raise_exception('no') }}"),
        lambda directory: (directory / "tiktoken.model").write_bytes(b""),
    ],
)
def test_what_a_gateway_cannot_serve_is_what_the_check_refuses(
    model_dir: Path, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    copy = Path(shutil.copytree(model_dir, tmp_path / "copy"))
    damage(copy)
    with CheckpointFiles.open(copy) as files:
        checked = fault(lambda: check(files))
    assert checked.startswith(str(copy))
    assert fault(lambda: Model.load(GatewayConfig(model=copy, controller="127.0.0.1:1"))) == checked
