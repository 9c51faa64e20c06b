import json
from pathlib import Path

from expertfleet.cluster.controller.desired_state import MAX_SEATS
from expertfleet.cluster.ray.offer import ANY_SEAT, Offer, offers_among
from expertfleet.cluster.ray.settings import (
    RaySettings,
    thread_environment,
    token_from,
)

SETTINGS = RaySettings(Path("/run/x"), threads=3)


def test_the_head_survives_what_ray_would_die_of() -> None:
    environment = SETTINGS.environment({"PATH": "/bin"})
    assert environment["RAY_gcs_storage"] == "rocksdb"
    assert environment["RAY_gcs_storage_path"] == "/run/x/gcs"
    assert environment["RAY_gcs_rpc_server_reconnect_timeout_s"] == "3600"
    assert environment["RAY_memory_monitor_refresh_ms"] == "0"
    assert environment["RAY_worker_niceness"] == "0"
    assert environment["RAY_USAGE_STATS_ENABLED"] == "0"
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["PATH"] == "/bin"


def test_the_users_own_ray_and_fleet_settings_stay_out() -> None:
    base = {"RAY_ADDRESS": "other:6379", "RAY_AUTH_TOKEN": "theirs", "EXPERTFLEET_PORT": "1", "HOME": "/root"}
    environment = SETTINGS.environment(base)
    assert "RAY_ADDRESS" not in environment
    assert "EXPERTFLEET_PORT" not in environment
    assert environment["RAY_AUTH_TOKEN"] == SETTINGS.token
    driver = SETTINGS.driver_environment(base)
    assert not {"RAY_ADDRESS", "EXPERTFLEET_PORT", "RAY_START_HOOK"} & driver.keys()
    assert (driver["RAY_AUTH_TOKEN"], driver["HOME"]) == (SETTINGS.token, "/root")


def test_every_cluster_has_a_token_of_its_own() -> None:
    assert len({RaySettings(Path("/x")).token for _ in range(8)}) == 8


def test_the_head_listens_on_loopback_and_no_dashboard_runs() -> None:
    command = SETTINGS.head_command("python")
    assert "--include-dashboard=false" in command
    assert "--node-ip-address=127.0.0.1" in command
    assert any(word.startswith("--object-store-memory=") and int(word.partition("=")[2]) < 1 << 27 for word in command)


def test_waiting_threads_sleep() -> None:
    environment = thread_environment(4)
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE"
    assert environment["KMP_BLOCKTIME"] == "0"


def test_a_node_of_several_machines_offers_one_seat_and_is_reached_at_its_address() -> None:
    token, offer = token_from("secret of the fleet"), Offer("expert-3", "f00")
    command = RaySettings(Path("/run/x"), host="10.0.0.3", token=token, offer=offer).join_command(
        "python", "10.0.0.2:6379"
    )
    assert "--address=10.0.0.2:6379" in command
    assert "--node-ip-address=10.0.0.3" in command
    assert _resources(command) == {"seat-expert-3.f00": 1}
    assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in RaySettings(Path("/run/x"), host="10.0.0.3").environment({})


def test_a_head_takes_the_workers_that_it_offers_to_take_and_no_others() -> None:
    offer = Offer.new(ANY_SEAT)
    own, none = (RaySettings(Path("/run/x"), offer=each).head_command("python") for each in (offer, None))
    assert offers_among(_resources(own)) == [offer]
    assert _resources(own)[offer.resource] > MAX_SEATS
    assert _resources(none) == {}


def _resources(command: list[str]) -> dict[str, float]:
    (resources,) = (word.partition("=")[2] for word in command if word.startswith("--resources="))
    return dict(json.loads(resources))


def test_rays_token_follows_from_the_fleets_and_does_not_tell_it() -> None:
    assert token_from("secret of the fleet") == token_from("secret of the fleet") != token_from("another")
    assert "secret" not in token_from("secret of the fleet")


def test_a_head_keeps_its_state_where_it_is_told() -> None:
    settings = RaySettings(Path("/run/x"), storage=Path("/var/lib/fleet"), port=6379)
    assert settings.environment({})["RAY_gcs_storage_path"] == "/var/lib/fleet/gcs"
    assert "--port=6379" in settings.head_command("python")
