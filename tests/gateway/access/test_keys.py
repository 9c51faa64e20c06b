"""Keys of a file that changes while the gateway serves."""

import logging
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from secret_volume import mount_secret

from expertfleet.gateway.access import keys as keys_
from expertfleet.gateway.access.keys import ApiKeys, all_keys


def replace(file: Path, text: str) -> None:
    """As the kubelet does: the new one is written elsewhere first."""
    new = file.with_name("new")
    new.write_text(text)
    os.replace(new, file)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(keys_, "_LOOK_S", 0.0)
    path = tmp_path / "keys"
    path.write_text("old,\n second \n")
    return path


def test_a_secrets_volume_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that is named never changes: it is a link, and what a link on its way points to is swapped."""
    monkeypatch.setattr(keys_, "_LOOK_S", 0.0)
    mount_secret(tmp_path / "keys", {"keys": b"old"})
    keys = ApiKeys((), tmp_path / "keys" / "keys")
    assert keys.accepts("old")
    for text, good, bad in (("old,new", "old", "other"), ("new", "new", "old"), ("one", "one", "new")):
        mount_secret(tmp_path / "keys", {"keys": text.encode()})
        assert keys.accepts(good)
        assert not keys.accepts(bad)


def test_lines_and_commas_part_keys(file: Path) -> None:
    assert all_keys(("given",), file) == ("given", "old", "second")
    assert all_keys((), None) == ()


@pytest.mark.parametrize("content", [b"", b" ,\n", b"\xff\xfe"])
def test_a_file_without_keys_is_refused_at_the_start(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"api_key_file: {file}"):
        ApiKeys((), file)


def test_new_keys_replace_the_files_old_ones_and_no_others(file: Path) -> None:
    keys = ApiKeys(("given",), file)
    assert all(keys.accepts(key) for key in ("given", "old", "second"))
    replace(file, "new")
    assert keys.accepts("new")
    assert keys.accepts("given")
    assert not keys.accepts("old")
    assert not keys.accepts("")


@pytest.mark.parametrize("damage", ["emptied", "removed"])
def test_a_damaged_file_changes_nothing_until_it_is_whole(
    file: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    keys = ApiKeys((), file)
    if damage == "emptied":
        file.write_text("")
    else:
        file.unlink()
    with caplog.at_level(logging.WARNING):
        assert keys.accepts("old")
        assert keys.accepts("old")
    assert not keys.accepts("other")
    assert keys.any
    assert len(caplog.messages) == 1, "said once"
    assert str(file) in caplog.messages[0]
    file.write_text("other")
    assert keys.accepts("other")
    assert not keys.accepts("old")


def test_a_running_stream_outlives_its_key(file: Path, model_dir: Any, scripts: Any) -> None:
    rig = scripts.Rig(model_dir, api_key_file=file)
    try:
        rig.client.headers["authorization"] = "Bearer old"
        rig.worker.script = scripts.say(rig.text.ids("a b c d e<|im_end|>"), wait_s=0.1)
        answers: list[Any] = []
        thread = threading.Thread(target=lambda: answers.append(rig.chat(stream=True)))
        thread.start()
        scripts.until(lambda: rig.worker.num_running == 1, 5.0)
        replace(file, "new")
        assert rig.client.get("/v1/models").status_code == 401
        assert rig.admin.post("/scale", json={"expert_shards": 2}).status_code == 401
        new = {"authorization": "Bearer new"}
        assert rig.client.get("/v1/models", headers=new).status_code == 200
        thread.join(20)
        assert answers[0].status_code == 200
        assert "[DONE]" in answers[0].text
    finally:
        rig.close()
