"""Settings come from file, environment and flags, in that order, and mistakes are named."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from expertfleet.settings.flags import add_flags, to_flags
from expertfleet.settings.option import option
from expertfleet.settings.reader import (
    SettingsError,
    check_address,
    check_host,
    check_seat,
    masked,
    read_file,
    resolve,
    shares,
    write_file,
)


@dataclass(frozen=True)
class Config:
    model: Path = option(help="where")
    port: int = option(8000, "port")
    share: float | None = option(None, "share")
    names: tuple[str, ...] = option((), "names")
    dtype: Literal["bfloat16", "float32"] = option("bfloat16", "dtype")
    quiet: bool = option(False, "quiet")
    key: str = option("", "key", secret=True)

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port: {self.port} is not within 0 to 65535")


def parse(*argv: str) -> dict[str, object]:
    parser = argparse.ArgumentParser()
    add_flags(parser, Config)
    return vars(parser.parse_args(argv))


def test_flag_beats_environment_beats_file() -> None:
    file = {"model": "/f", "port": 1, "share": 0.5, "quiet": True}
    environ = {"EXPERTFLEET_PORT": "2", "EXPERTFLEET_SHARE": "0.25", "HOME": "/x"}
    config = resolve(Config, flags=parse("--port", "3", "--names", "a/b", "c"), environ=environ, file=file)
    assert config == Config(Path("/f"), 3, 0.25, ("a/b", "c"), "bfloat16", True)


def test_flags_rebuild_the_configuration() -> None:
    config = Config(Path("/m"), 7, 0.5, ("x", "y"), "float32", True)
    assert resolve(Config, flags=parse(*to_flags(config)), environ={}) == config


@pytest.mark.parametrize(
    ("file", "environ", "message"),
    [
        ({"modle": "x"}, {}, "unknown setting 'modle' .did you mean 'model'"),
        ({"model": "x"}, {"EXPERTFLEET_PROT": "1"}, "unknown setting EXPERTFLEET_PROT .did you mean 'port'"),
        ({"model": "x", "port": "many"}, {}, "port: 'many' is not a whole number"),
        ({"model": "x", "port": 70000}, {}, "port: 70000 is not within 0 to 65535"),
        ({"model": "x", "port": True}, {}, "port: True is not a whole number"),
        ({"model": "x", "dtype": "int8"}, {}, "'int8' is not one of bfloat16, float32"),
        ({"model": "x"}, {"EXPERTFLEET_QUIET": "maybe"}, "'maybe' is not true or false"),
        ({"model": ["x"], "key": {"a": 1}}, {}, "is not text"),
        ({}, {}, "missing: --model"),
    ],
)
def test_mistakes_are_named(file: dict[str, object], environ: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        resolve(Config, flags={}, environ=environ, file=file)


@pytest.mark.parametrize(
    "address",
    [
        *("", "host", ":80", "host:", "host:x", "host:0", "host:65536", "a:1,b:2", "a:1 b:2", "a\t:1"),
        *("fd00::7:7411", "::1", "[fd00::7]", "[fd00::7:80", "fd00::7]:80", "[]:80", "[host]:80", "[10.0.0.2]:80"),
    ],
)
def test_what_is_no_address_is_refused_by_name(address: str) -> None:
    with pytest.raises(ValueError, match=r"shards: '.*' is not HOST:PORT"):
        check_address("shards", address)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:1", "some-host.example:65535", "[::1]:7411", "unix-like_name:80", "[fd00::7]:1", "[fe80::1%eth0]:1"],
)
def test_what_is_an_address_is_taken(address: str) -> None:
    check_address("shards", address)


@pytest.mark.parametrize("host", ["", "[::1]", "10.0.0.2:80", "a b", "a,b", "http://a", "fd00::7::1", "a\n"])
def test_what_is_no_host_is_refused_by_name(host: str) -> None:
    with pytest.raises(ValueError, match=r"^admin_host: .* is neither an address nor a host's name"):
        check_host("admin_host", host)


@pytest.mark.parametrize("host", ["127.0.0.1", "::", "fd00::7", "fe80::1%eth0", "a-name.example", "unix_like"])
def test_what_is_a_host_is_taken(host: str) -> None:
    check_host("admin_host", host)


def test_secrets_are_masked() -> None:
    shown = masked(Config(Path("/m"), key="hunter2"))
    assert "hunter2" not in str(shown)
    assert shown["model"] == "/m"


def test_unreadable_files_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("a: [1\nb")
    (tmp_path / "list.yaml").write_text("- 1")
    for name in ("bad.yaml", "list.yaml", "none.yaml"):
        with pytest.raises(SettingsError) as caught:
            read_file(tmp_path / name)
        assert "\n" not in str(caught.value)
    (tmp_path / "good.yaml").write_text("max-model-len: 5")
    assert read_file(tmp_path / "good.yaml") == {"max_model_len": 5}


@dataclass(frozen=True)
class Other:
    port: int = option(1, "also the first one's")
    depth: int = option(1, "its own")


def test_two_configurations_share_one_environment() -> None:
    environ = {"EXPERTFLEET_DEPTH": "3", "EXPERTFLEET_PORT": "7", "PATH": "/bin"}
    own, other = shares((Config, Other), environ)
    assert own == {"EXPERTFLEET_PORT": "7"}
    assert other == {"EXPERTFLEET_DEPTH": "3", "EXPERTFLEET_PORT": "7"}
    with pytest.raises(SettingsError, match=r"unknown setting EXPERTFLEET_DEPHT \(did you mean 'depth'\?\)"):
        shares((Config, Other), {"EXPERTFLEET_DEPHT": "3"})


def test_a_written_file_is_for_its_user_and_rebuilds_the_configuration(tmp_path: Path) -> None:
    config = resolve(Config, flags={"model": "a b", "names": ["x", "y"], "share": 0.5, "key": "secret"}, environ={})
    path = tmp_path / "settings.yaml"
    write_file(config, path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert resolve(Config, flags={}, environ={}, file=read_file(path)) == config


@pytest.mark.parametrize("seat", ["expert-0", "expert-7", "expert-4095"])
def test_a_seat_is_its_role_and_a_number(seat: str) -> None:
    check_seat(seat, "expert", 4095)


@pytest.mark.parametrize(
    "seat",
    ["expert-4096", "expert-07", "expert-", "expert", "7", "expert-٣", "attention-1", "expert-1-1", "expert--1", ""],
)
def test_what_is_no_seat_of_the_role_is_named(seat: str) -> None:
    with pytest.raises(ValueError, match=f"^seat: '{seat}' is not expert-N, N from 0 to 4095$"):
        check_seat(seat, "expert", 4095)
