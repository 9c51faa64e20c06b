"""An API that strangers could reach wants a key, or a wish in so many words."""

from pathlib import Path
from typing import Any

import pytest

from expertfleet.gateway.__main__ import main
from expertfleet.gateway.access.access_settings import AccessSettings

BEYOND = (
    *("0.0.0.0", "::", "10.0.0.2", "192.168.1.7", "fd00::7", "2001:db8::1", "fe80::1%eth0"),
    *("::ffff:10.0.0.2", "0", "::0", "::ffff:0.0.0.0", "api.example.com", "a-machine", "localhost.example.com"),
)
LOOPBACK = ("127.0.0.1", "127.0.0.2", "127.255.255.254", "::1", "::ffff:127.0.0.1", "localhost", "LOCALHOST")


def check(**settings: Any) -> None:
    AccessSettings(**settings)


@pytest.mark.parametrize("host", BEYOND)
def test_without_a_key_nobody_beyond_the_machine_is_served(host: str) -> None:
    with pytest.raises(
        ValueError, match=r"^host: .* can be reached by strangers, .*--api-key-file or --api-key, or --o"
    ):
        check(host=host)


@pytest.mark.parametrize("host", BEYOND)
def test_a_key_or_the_wish_opens_it(host: str, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("secret")
    for settings in ({"api_key": ("secret",)}, {"api_key_file": tmp_path / "keys"}, {"open": True}):
        check(host=host, **settings)


@pytest.mark.parametrize("host", LOOPBACK)
def test_on_loopback_neither_is_needed(host: str) -> None:
    check(host=host)
    check(host=host, open=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::"])
def test_the_wish_and_keys_contradict_each_other(host: str, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("secret\nother\n")
    with pytest.raises(ValueError, match=r"^open: true serves whoever comes"):
        check(host=host, api_key=("secret",), open=True)
    with pytest.raises(ValueError, match=r"^open: true serves whoever comes"):
        check(host=host, api_key_file=tmp_path / "keys", open=True)


@pytest.mark.parametrize("text", [" ,\n", "", "\n\n"])
def test_a_file_without_keys_opens_nothing(text: str, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(text)
    for host in ("0.0.0.0", "127.0.0.1"):
        with pytest.raises(ValueError, match=r"^api_key_file: .* holds no key"):
            check(host=host, api_key_file=tmp_path / "keys")


def test_nor_does_one_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for path, why in (
        (tmp_path, "Is a directory"),
        (tmp_path / "none", "No such file"),
        (tmp_path / "binary", "utf-8"),
    ):
        with pytest.raises(ValueError, match=rf"^api_key_file: {path}: .*{why}"):
            check(host="0.0.0.0", api_key_file=path)


@pytest.mark.parametrize("key", ["", " ", "\t"])
def test_a_key_that_nobody_can_show_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match=r"^api_key: an empty key"):
        check(host="0.0.0.0", api_key=("secret", key))


@pytest.mark.parametrize("host", ["", "[::1]", "0.0.0.0:8000", "a host", "http://a", "1::2::3"])
def test_what_is_no_host_is_refused_by_name(host: str) -> None:
    with pytest.raises(ValueError, match=r"^host: .* is neither an address nor a host's name"):
        check(host=host, open=True)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "a-machine"])
def test_the_command_ends_with_that_line(host: str, model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--model", str(model_dir), "--controller", "a:1", "--host", host, "--dry-run")
    assert main(flags) == 1
    assert capsys.readouterr().err.startswith(f"gateway: --host: {host} can be reached by strangers")
    assert main([*flags, "--open"]) == 0
    assert "open: true" in capsys.readouterr().out


def test_the_environment_can_say_it_too(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--model", str(model_dir), "--controller", "a:1", "--host", "0.0.0.0", "--dry-run")
    monkeypatch.setenv("EXPERTFLEET_OPEN", "true")
    assert main(flags) == 0
    monkeypatch.setenv("EXPERTFLEET_API_KEY", "secret")
    assert main(flags) == 1
    assert capsys.readouterr().err.startswith("gateway: EXPERTFLEET_OPEN: true serves whoever comes")
