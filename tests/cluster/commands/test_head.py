from pathlib import Path

import pytest

from expertfleet.cluster.commands.head import check_membership, first_desired
from expertfleet.cluster.controller.desired_state import DesiredState
from expertfleet.membership.security import WireSettings

TOKEN = WireSettings(cluster_token="a token of sixteen letters")


def test_a_number_of_replicas_holds_until_another_is_given(tmp_path: Path) -> None:
    state, told = tmp_path / "fleet.json", tmp_path / "replicas"
    assert first_desired(1.5, state, told) == DesiredState((), (), 1.5)
    DesiredState((0,), (0, 3), 2.0).save(state)  # as `scale` would
    assert first_desired(1.5, state, told) == DesiredState((0,), (0, 3), 2.0)
    assert first_desired(1.0, state, told) == DesiredState((0,), (0, 3), 1.0)
    assert DesiredState.load(state) == DesiredState((0,), (0, 3), 1.0)
    assert first_desired(1.0, state, told) == DesiredState((0,), (0, 3), 1.0)


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.1", "localhost", "LOCALHOST", "::1", "0:0:0:0:0:0:0:1", "::ffff:127.0.0.1"),
        *("0.0.0.0", "0", "::", "::0"),
    ],
)
def test_a_machine_of_a_fleet_has_an_address_that_others_reach(host: str) -> None:
    with pytest.raises(ValueError, match=rf"^host: {host} is no address that other machines have"):
        check_membership(TOKEN, host)


@pytest.mark.parametrize("host", ["10.0.0.2", "127.0.0.2", "fd00::7", "no-such-host.invalid"])
def test_any_other_may_be_its_own(host: str) -> None:
    """Whether it is, is found out at the start."""
    check_membership(TOKEN, host)
