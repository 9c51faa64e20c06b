"""Seats to which no worker comes although Ray says that it started one."""

from expertfleet.cluster.ray.missing_workers import MissingWorkers


def test_a_seat_is_named_once_it_has_been_empty_for_long_and_then_twice_as_long() -> None:
    missing = MissingWorkers()
    named = [now for now in range(1000) if missing.look(["a"], now)]
    assert named == [60, 180, 420, 900]


def test_a_seat_that_was_taken_meanwhile_begins_anew() -> None:
    missing = MissingWorkers()
    assert not missing.look(["a", "b"], 0)
    assert not missing.look(["b"], 59)
    assert missing.look(["a", "b"], 61) == ["b"]
    missing.forgive(["b"])
    assert missing.look(["a", "b"], 121) == ["a", "b"]
