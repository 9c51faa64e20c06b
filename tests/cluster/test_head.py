from pathlib import Path

from expertfleet.cluster.head import first_wanted
from expertfleet.cluster.wanted import Wanted


def test_a_number_of_replicas_holds_until_another_is_given(tmp_path: Path) -> None:
    state, told = tmp_path / "fleet.json", tmp_path / "replicas"
    assert first_wanted(1.5, state, told) == Wanted((), (), 1.5)
    Wanted((0,), (0, 3), 2.0).save(state)  # as `scale` would
    assert first_wanted(1.5, state, told) == Wanted((0,), (0, 3), 2.0)
    assert first_wanted(1.0, state, told) == Wanted((0,), (0, 3), 1.0)
    assert Wanted.load(state) == Wanted((0,), (0, 3), 1.0)
    assert first_wanted(1.0, state, told) == Wanted((0,), (0, 3), 1.0)
