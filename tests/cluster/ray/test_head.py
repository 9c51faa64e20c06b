from pathlib import Path

from until import until

from expertfleet.cluster.ray.head import kill_gcs_server
from expertfleet.cluster.ray.launcher import Launcher, make_run_dir


def test_of_all_processes_below_the_guard_gcs_server_alone_is_killed(tmp_path: Path) -> None:
    launcher = Launcher(make_run_dir())
    try:
        pids = {}
        for name in ("raylet", "gcs_server", "gateway"):
            program = tmp_path / name
            program.symlink_to("/bin/sleep")
            pids[name] = launcher.spawn([str(program), "60"], {}, name)
        kill_gcs_server(launcher.guard_pid)
        until(lambda: pids["gcs_server"] in launcher.exited, 5)
        assert launcher.exited == {pids["gcs_server"]: -9}
    finally:
        launcher.end()
