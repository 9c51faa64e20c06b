import dataclasses
from inspect import get_annotations
from pathlib import Path
from typing import Any

import pytest

from expertfleet.attention_workers.config import AttentionConfig
from expertfleet.cluster.commands.config import ATTENTION_ALONE, EXPERT_ALONE, GATEWAY_ALONE, FleetConfig
from expertfleet.expert_workers.config import ExpertConfig
from expertfleet.gateway.config import GatewayConfig
from expertfleet.settings.reader import SettingsError, resolve


def config(tmp_path: Path, **changes: Any) -> FleetConfig:
    return FleetConfig(model=tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"expert_shards": 0}, "expert_shards: 0 is not within 1 to 4096"),
        ({"attention_workers": 0}, "attention_workers: 0 is not within 1 to 4096"),
        ({"expert_shards": 3, "replicas": 4}, "replicas: 4 is not within 1 to 3"),
        ({"port": 70000}, "port: 70000 is not within 0 to 65535"),
        ({"port": 9000, "admin_port": 9000}, "admin_port: 9000 is the API's port as well"),
        ({"threads": 0}, "threads: 0 is not within 1 to 1024"),
        ({"drain_s": -1}, "drain_s: -1 is not within 0 to 86400"),
        ({"device": "cuda"}, "device: cuda is not there for a whole fleet"),
        ({"api_key": ("a,b",)}, "api_key: a key must not contain a comma"),
    ],
)
def test_a_bad_value_names_the_setting_and_its_limit(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **changes)


def test_seats_are_numbered_from_zero(tmp_path: Path) -> None:
    fleet = config(tmp_path, attention_workers=2, expert_shards=3)
    assert fleet.attention_seats == ("attention-0", "attention-1")
    assert fleet.expert_seats == ("expert-0", "expert-1", "expert-2")


def test_every_role_gets_the_fleets_settings(tmp_path: Path) -> None:
    fleet = config(tmp_path, dtype="float32", max_model_len=99, max_num_seqs=7, drain_s=3.0, served_model_name=("a/b",))
    expert = fleet.expert("expert-1", "h:1", "10.0.0.1", 4)
    attention = fleet.attention("attention-0", "h:1", "10.0.0.2", 2)
    gateway = fleet.gateway("h:1", 8001, 8002)
    assert (expert.seat, expert.controller, expert.host, expert.threads) == ("expert-1", "h:1", "10.0.0.1", 4)
    assert expert.dtype == attention.dtype == "float32"
    assert (attention.max_model_len, attention.max_num_seqs, attention.threads) == (99, 7, 2)
    assert (gateway.port, gateway.admin_port, gateway.max_model_len) == (8001, 8002, 99)
    assert gateway.served_model_name == ("a/b",)
    assert expert.drain_s == attention.drain_s == gateway.drain_s == 3.0


@pytest.mark.parametrize(
    ("role", "alone"),
    [(ExpertConfig, EXPERT_ALONE), (AttentionConfig, ATTENTION_ALONE), (GatewayConfig, GATEWAY_ALONE)],
)
def test_what_a_role_has_alone_is_no_option_that_the_fleet_inherits(role: type, alone: tuple[str, ...]) -> None:
    shared = {name for each in role.__mro__ if issubclass(FleetConfig, each) for name in get_annotations(each)}
    assert set(alone) <= {field.name for field in dataclasses.fields(role)} - shared


@pytest.mark.parametrize(("given", "most"), [(None, 7 + 256), (0, None), (1, 1), (500, 500)])
def test_a_worker_has_no_more_requests_at_once_than_the_fleet_says(
    tmp_path: Path, given: int | None, most: int | None
) -> None:
    fleet = config(tmp_path, max_num_seqs=7, max_num_queued_reqs=given)
    assert fleet.attention("attention-0", "h:1", "10.0.0.2", 2).max_open == most


def test_whoever_reads_weights_is_told_of_both_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fleet = config(Path("model"), shared_model=Path("shared"))
    assert fleet.model_folders == (tmp_path / "model", tmp_path / "shared")
    for role in (fleet.expert("expert-1", "h:1", "10.0.0.1", 4), fleet.attention("attention-0", "h:1", "10.0.0.2", 2)):
        assert (role.model, role.shared_model) == fleet.model_folders
    assert config(tmp_path).model_folders == (tmp_path, None)


def test_a_value_only_a_role_refuses_is_refused_early(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_num_queued_reqs: -1 is not within 0 to"):
        config(tmp_path, max_num_queued_reqs=-1).check_roles()
    with pytest.raises(ValueError, match="max_num_seqs: 0 is not within"):
        config(tmp_path, max_num_seqs=0).check_roles()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "a-machine"])
def test_a_whole_fleet_serves_strangers_only_with_a_key_or_the_wish(tmp_path: Path, host: str) -> None:
    with pytest.raises(ValueError, match=f"^host: {host} can be reached by strangers"):
        config(tmp_path, host=host).check_roles()
    config(tmp_path, host=host, api_key=("secret",)).check_roles()
    config(tmp_path, host=host, open=True).check_roles()
    assert config(tmp_path, host=host, open=True).gateway("h:1", 1, 2).open
    with pytest.raises(ValueError, match=r"^open: true serves whoever comes"):
        config(tmp_path, host=host, open=True, api_key=("secret",)).check_roles()


def test_file_environment_and_flags_in_that_order(tmp_path: Path) -> None:
    file = {"model": str(tmp_path), "port": 1, "expert_shards": 5, "replicas": 2}
    environ = {"EXPERTFLEET_PORT": "2", "EXPERTFLEET_REPLICAS": "3", "HOME": "/"}
    fleet = resolve(FleetConfig, flags={"port": "3"}, environ=environ, file=file)
    assert (fleet.expert_shards, fleet.replicas, fleet.port) == (5, 3, 3)


def test_an_unknown_key_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(SettingsError, match=r"unknown setting 'expert_shard' .did you mean 'expert_shards'"):
        resolve(FleetConfig, flags={}, environ={}, file={"expert_shard": 2})
