import json
from collections.abc import Iterator

import pytest
from fake_api import WORKER, fake_api

from expertfleet.cluster.commands.status import fetch_status, render
from expertfleet.cluster.errors import ClusterError


@pytest.fixture
def url() -> Iterator[str]:
    with fake_api() as api:
        yield api.url


@pytest.mark.parametrize("path", ["", "/", "/admin"])
def test_status_comes_from_either_port_with_exactly_its_fields(url: str, path: str) -> None:
    shown = json.loads(render(fetch_status(url + path), as_json=True))
    fields = ("role", "seat", "pid", "node", "state", "epoch", "numerics", "experts", "bytes", "tokens")
    assert shown == {"workers": [{field: WORKER[field] for field in fields}]}


def test_the_table_says_what_is_missing(url: str) -> None:
    lines = render(fetch_status(url), as_json=False).splitlines()
    assert lines[0].split() == [
        "role",
        "seat",
        "pid",
        "node",
        "state",
        "epoch",
        "numerics",
        "experts",
        "bytes",
        "tokens",
    ]
    assert lines[1].split() == ["expert", "expert-0", "7", "n", "ready", "1.2", "a", "12", "34", "56"]
    assert lines[2] == "not ready: expert-1 lost"


def test_the_table_says_who_is_quarantined_and_by_whom() -> None:
    workers = [WORKER | {"quarantined_by": ["attention-0", "attention-2"]}, WORKER | {"seat": "expert-1"}]
    text = render({"workers": workers, "ready": True, "coverage": 1.0, "settled": True}, as_json=False)
    (line,) = [line for line in text.splitlines() if "quarantined" in line]
    assert line.startswith("expert-0 is quarantined by attention-0, attention-2: ")
    assert line.endswith("expertfleet drain expert-0")


def test_the_table_says_why_fewer_copies_than_wanted_are_held() -> None:
    status = {"workers": [WORKER], "ready": True, "coverage": 1.0, "settled": True}
    without = render({**status, "shortfall": None}, as_json=False)
    assert (
        render({**status, "shortfall": "replicas: 4 are wanted"}, as_json=False) == f"{without}\nreplicas: 4 are wanted"
    )


def test_an_address_that_is_no_fleet_is_one_line(url: str) -> None:
    with pytest.raises(ClusterError, match="/nowhere/health answered with status 404; is it a fleet's address"):
        fetch_status(f"{url}/nowhere")
    with pytest.raises(ClusterError, match="is the fleet running there"):
        fetch_status("http://127.0.0.1:9")
