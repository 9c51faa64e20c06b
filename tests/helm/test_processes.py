"""The commands of the rendered demo preset, run as they stand from what the image holds: they serve, grow, drain, take new secrets, and are
replaced under requests.
"""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from release import Asking, Release
from until import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def contents(folder: Path) -> dict[Path, int]:
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory, opt: Path) -> Iterator[Release]:
    installed = Release(tmp_path_factory.mktemp("release"), opt)
    try:
        yield installed
    finally:
        installed.kill_all()


def test_the_preset_serves_a_chat_and_writes_to_its_volumes_alone(release: Release) -> None:
    before = contents(release.opt)
    release.start_all()
    release.wait_settled("expert-0", "expert-1")
    assert "9.9 is" in release.ask()
    assert {name: list(pod.written()) for name, pod in release.pods.items()} == {name: [] for name in release.pods}
    assert contents(release.opt) == before, "its root file system is read-only"


def test_one_more_shard_joins_while_requests_run_and_leaves_again(release: Release) -> None:
    expected, asking = release.ask(), Asking(release)
    joined = release.start("expert", 2).wait_ready()
    release.wait_settled("expert-0", "expert-1", "expert-2")
    assert joined.terminate() < joined.grace_s
    assert not joined.passes("readinessProbe")
    release.wait_settled("expert-0", "expert-1")
    assert set(asking.stop()) == {expected}


def test_new_keys_and_certificates_are_taken_while_requests_run(release: Release) -> None:
    """A renewed certificate shows when a connection is made: by a shard that comes, and to a head that comes back."""
    expected, asking = release.ask(), Asking(release)
    old = release.key
    release.renew_certificate()
    joined = release.start("expert", 2).wait_ready()
    release.pods["head-0"].terminate()
    release.start("head").wait_ready()
    release.wait_settled("expert-0", "expert-1", "expert-2")
    joined.terminate()
    release.wait_settled("expert-0", "expert-1")
    assert release.post(key="new", max_tokens=1).status_code == 401
    release.set_keys("new", old)
    until(lambda: release.post(key="new", max_tokens=1).status_code == 200, 10)
    release.key, num_answers = "new", len(asking.answers)
    until(lambda: len(asking.answers) >= num_answers + 4, 120)
    release.set_keys("new")
    until(lambda: release.post(key=old, max_tokens=1).status_code == 401, 10)
    assert set(asking.stop()) == {expected}


def test_below_what_holds_the_model_it_fails_closed_and_recovers(release: Release) -> None:
    expected = release.ask()
    impatient = release.start("gateway", 8, {"gateway": {"settings": {"workerWaitS": 1}}}).wait_ready()
    url = f"http://{impatient.ip}:{release.ports[8000]}"
    for name in ("expert-1", "expert-0"):
        release.pods[name].terminate()
    assert any("ends without being taken over" in line for line in release.pods["expert-0"].lines)
    refused = release.post(url)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "2"), refused.text
    assert refused.json()["error"]["code"] in ("not_ready", "no_replica")
    assert httpx.get(f"{url}/ready", trust_env=False).status_code == 503
    assert impatient.terminate() < impatient.grace_s
    waiting = Asking(release, 1)
    for index in range(2):
        release.start("expert", index)
    for index in range(2):
        release.pods[f"expert-{index}"].wait_ready()
    assert release.ask() == expected
    assert set(waiting.stop()) == {expected}, "who waited is answered"


def test_every_process_is_replaced_by_the_next_build_while_requests_run(release: Release) -> None:
    expected, asking = release.ask(), Asking(release)
    release.opt = release.next_build()
    for role in ("expert", "attention", "head"):
        for index in range(release.replicas(role)):
            release.pods[f"{role}-{index}"].terminate()
            release.start(role, index).wait_ready()
            release.wait_settled("expert-0", "expert-1")
    old = next(pod for pod in release.gateways if pod.is_running)
    release.start("gateway", 1).wait_ready()
    old.terminate()
    answers = asking.stop()
    assert set(answers) == {expected}
    assert len(answers) > 4
    assert release.ask() == expected
