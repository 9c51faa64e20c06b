from pathlib import Path

from expertfleet.cluster.desired_state import DesiredState
from expertfleet.cluster.head import first_wanted


def test_a_number_of_replicas_holds_until_another_is_given(tmp_path: Path) -> None:
    state, told = tmp_path / "fleet.json", tmp_path / "replicas"
    assert first_wanted(1.5, state, told) == DesiredState((), (), 1.5)
    DesiredState((0,), (0, 3), 2.0).save(state)  # as `scale` would
    assert first_wanted(1.5, state, told) == DesiredState((0,), (0, 3), 2.0)
    assert first_wanted(1.0, state, told) == DesiredState((0,), (0, 3), 1.0)
    assert DesiredState.load(state) == DesiredState((0,), (0, 3), 1.0)
    assert first_wanted(1.0, state, told) == DesiredState((0,), (0, 3), 1.0)
