"""Few are slow among peers, whatever the times are; and only who stays slow is named."""

from hypothesis import given
from hypothesis import strategies as st

from expertfleet.cluster.controller.stragglers import SlowWatch, find_slow

SECONDS = st.floats(1e-6, 10.0)
NAMES = [f"127.0.0.1:{port}" for port in range(12)]
CLASSES = st.fixed_dictionaries({name: st.sampled_from(["cpu", "h100"]) for name in NAMES})
TIMES = st.dictionaries(st.sampled_from(NAMES), SECONDS)
FACTORS = st.floats(1.5, 20.0)


@given(st.lists(TIMES, max_size=4), CLASSES, FACTORS)
def test_who_is_slow_has_a_peer_that_is_not_in_the_eyes_of_all_who_timed_it(
    witnesses: list[dict[str, float]], classes: dict[str, str], factor: float
) -> None:
    slow = find_slow(witnesses, classes, factor)
    for name in slow:
        seen = [times for times in witnesses if name in times]
        assert seen
        for times in seen:
            peers = [times[other] for other in times if other != name and classes[other] == classes[name]]
            assert times[name] > factor * min(peers)


@given(TIMES, CLASSES, FACTORS)
def test_at_most_half_of_a_class_is_slow_and_its_fastest_is_not(
    times: dict[str, float], classes: dict[str, str], factor: float
) -> None:
    slow = find_slow([times], classes, factor)
    for kind in ("cpu", "h100"):
        ours = [name for name in times if classes[name] == kind]
        assert len(slow.intersection(ours)) <= len(ours) / 2
        if ours:
            assert min(ours, key=times.__getitem__) not in slow


@given(TIMES, CLASSES, FACTORS, st.sampled_from([0.25, 0.5, 2.0, 1024.0]))
def test_only_ratios_count_and_another_class_does_not(
    times: dict[str, float], classes: dict[str, str], factor: float, scale: float
) -> None:
    slow = find_slow([times], classes, factor)
    assert find_slow([{name: seconds * scale for name, seconds in times.items()}], classes, factor) == slow
    alone = {name: seconds for name, seconds in times.items() if classes[name] == "cpu"}
    assert find_slow([alone], classes, factor) == {name for name in slow if classes[name] == "cpu"}


@given(st.lists(TIMES, min_size=1, max_size=4), CLASSES, FACTORS)
def test_one_more_witness_of_everybody_never_makes_anybody_slow(
    witnesses: list[dict[str, float]], classes: dict[str, str], factor: float
) -> None:
    more = dict.fromkeys(NAMES, 0.001)
    assert not find_slow([*witnesses, more], classes, factor)


def test_three_times_the_median_of_the_others_is_the_limit() -> None:
    classes = dict.fromkeys("abcd", "cpu")
    times = {"a": 1.0, "b": 2.0, "c": 9.0, "d": 6.0}
    assert find_slow([times], classes, 3.0) == {"c"} == find_slow([times | {"c": 6.01}], classes, 3.0)
    assert not find_slow([times | {"c": 6.0}], classes, 3.0)
    assert not find_slow([times], {"c": "cpu"}, 3.0)
    assert not find_slow([{"c": 9.0}], classes, 3.0)


def test_only_who_stays_slow_without_a_break_is_named() -> None:
    watch = SlowWatch(60.0)
    assert watch.look({"a", "b"}, 0.0) == []
    assert watch.look({"a", "b", "c"}, 50.0) == []
    assert watch.look({"a", "c"}, 59.9) == []
    assert watch.look({"a", "b", "c"}, 60.0) == ["a"]
    assert watch.look({"a", "b", "c"}, 120.0) == ["a", "c", "b"]
    assert watch.look({"b"}, 121.0) == ["b"]
    assert watch.look({"a"}, 122.0) == []
