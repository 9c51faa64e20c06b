"""CrashAttribution in a row are those at about the same place of a sequence."""

from expertfleet.gateway.engine.crash_attribution import CrashAttribution, Death


def test_deaths_at_about_the_same_place_add_up() -> None:
    deaths = CrashAttribution(1)
    for seat, num_tokens in (("a", 0), ("b", 0), ("c", 15), ("d", 30)):
        deaths.add(Death(seat, {1}), num_tokens)
    assert deaths.seats == ["a", "b", "c", "d"]


def test_who_went_on_well_beyond_begins_anew() -> None:
    deaths = CrashAttribution(1)
    deaths.add(Death("a", {1}), 500)
    assert deaths.seats == ["a"]
    deaths.add(Death("b", {1}), 516)
    assert deaths.seats == ["b"]
    deaths.add(Death("c", {1}), 531)
    assert deaths.seats == ["b", "c"]


def test_whoever_was_hit_by_all_of_them_is_a_suspect() -> None:
    deaths = CrashAttribution(1)
    deaths.add(Death("a", {1, 2, 3}), 0)
    assert not deaths.has_one_suspect
    deaths.add(Death("b", {1, 2}), 3)
    assert not deaths.has_one_suspect
    deaths.add(Death("c", {1, 4}), 3)
    assert deaths.has_one_suspect
    deaths.add(Death("d", {1, 4}), 100)
    assert not deaths.has_one_suspect


def test_a_death_whose_culprit_is_known_counts_for_nobody_else() -> None:
    first, second, third = (Death(seat, {1, 2}) for seat in "abc")
    culprit, bystander = CrashAttribution(1), CrashAttribution(2)
    for death in (first, second):
        culprit.add(death, 7)
        bystander.add(death, 7)
    culprit.blame()
    assert culprit.seats == ["a", "b"]
    assert bystander.seats == []
    bystander.add(third, 7)
    assert bystander.seats == ["c"]
    bystander.blame()
    assert culprit.seats == ["a", "b"]
