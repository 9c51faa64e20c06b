from pathlib import Path

from expertfleet.cluster.ray_settings import (
    RaySettings,
    prepare_driver,
    prepare_remote_driver,
    thread_environment,
)

SETTINGS = RaySettings(Path("/run/x"), threads=3)


def test_the_head_survives_what_ray_would_die_of() -> None:
    environment = SETTINGS.environment({"PATH": "/bin"})
    assert environment["RAY_gcs_storage"] == "rocksdb"
    assert environment["RAY_gcs_storage_path"] == "/run/x/gcs"
    assert environment["RAY_gcs_rpc_server_reconnect_timeout_s"] == "3600"
    assert environment["RAY_memory_monitor_refresh_ms"] == "0"
    assert environment["RAY_USAGE_STATS_ENABLED"] == "0"
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["PATH"] == "/bin"


def test_the_users_own_ray_and_fleet_settings_stay_out() -> None:
    base = {"RAY_ADDRESS": "other:6379", "RAY_AUTH_TOKEN": "theirs", "EXPERTFLEET_PORT": "1", "HOME": "/root"}
    environment = SETTINGS.environment(base)
    assert "RAY_ADDRESS" not in environment
    assert "EXPERTFLEET_PORT" not in environment
    assert environment["RAY_AUTH_TOKEN"] == SETTINGS.token
    driver = dict(base)
    prepare_driver(driver, SETTINGS)
    assert "RAY_ADDRESS" not in driver
    assert driver["RAY_AUTH_TOKEN"] == SETTINGS.token


def test_a_foreign_ray_keeps_its_token() -> None:
    driver = {"RAY_AUTH_TOKEN": "theirs", "RAY_gcs_rpc_server_reconnect_timeout_s": "60"}
    prepare_remote_driver(driver)
    assert driver["RAY_AUTH_TOKEN"] == "theirs"
    assert driver["RAY_gcs_rpc_server_reconnect_timeout_s"] == "60"


def test_every_cluster_has_a_token_of_its_own() -> None:
    assert len({RaySettings(Path("/x")).token for _ in range(8)}) == 8


def test_the_head_listens_on_loopback_and_no_dashboard_runs() -> None:
    command = SETTINGS.start_command("python")
    assert "--include-dashboard=false" in command
    assert "--node-ip-address=127.0.0.1" in command
    assert any(word.startswith("--object-store-memory=") and int(word.partition("=")[2]) < 1 << 27 for word in command)


def test_waiting_threads_sleep() -> None:
    environment = thread_environment(4)
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE"
    assert environment["KMP_BLOCKTIME"] == "0"
