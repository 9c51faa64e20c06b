"""Deaths in a row are those at about the same place of a sequence."""

from expertfleet.gateway.deaths import Deaths


def test_deaths_at_about_the_same_place_add_up() -> None:
    deaths = Deaths()
    for seat, num_tokens in (("a", 0), ("b", 0), ("c", 15), ("d", 30)):
        deaths.add(seat, num_tokens, {1})
    assert deaths.seats == ["a", "b", "c", "d"]


def test_who_went_on_well_beyond_begins_anew() -> None:
    deaths = Deaths()
    deaths.add("a", 500, {1})
    assert deaths.seats == ["a"]
    deaths.add("b", 516, {1})
    assert deaths.seats == ["b"]
    deaths.add("c", 531, {1})
    assert deaths.seats == ["b", "c"]


def test_whoever_was_hit_by_all_of_them_is_a_suspect() -> None:
    deaths = Deaths()
    deaths.add("a", 0, {1, 2, 3})
    assert not deaths.has_one_suspect
    deaths.add("b", 3, {1, 2})
    assert not deaths.has_one_suspect
    deaths.add("c", 3, {1, 4})
    assert deaths.has_one_suspect
    deaths.add("d", 100, {1, 4})
    assert not deaths.has_one_suspect
