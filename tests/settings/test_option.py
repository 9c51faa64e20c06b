"""An option's range is checked where the option is, and a fleet's options become a role's without being named again."""

from dataclasses import dataclass

import pytest

from expertfleet.settings.option import Settings, derive, option, redefine


@dataclass(frozen=True, kw_only=True)
class Shared(Settings):
    port: int = option(8000, "port", group="network", range=(0, 65535))
    share: float | None = option(None, "share", range=(0, 0.95))
    slow_s: float = option(0.0, "seconds; 0: never", range=(5, 60), zero=True)
    names: tuple[str, ...] = option((), "names")

    def check(self) -> None:
        super().check()
        if "" in self.names:
            raise ValueError("names: an empty name")


@dataclass(frozen=True, kw_only=True)
class Role(Shared):
    host: str = option("127.0.0.1", "address to listen on")
    depth: int = option(3, "the role's own", range=(1, 8))

    def check(self) -> None:
        super().check()
        if self.depth == self.port:
            raise ValueError("depth: as the port")


@dataclass(frozen=True, kw_only=True)
class Fleet(Shared):
    host: str = option("0.0.0.0", "address of the API: another option of the same name")
    share: float | None = redefine(Shared, "share", 0.5, "share of each")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"port": -1}, "port: -1 is not within 0 to 65535"),
        ({"port": 65536}, "port: 65536 is not within 0 to 65535"),
        ({"share": 0.96}, r"share: 0.96 is not within 0 to 0.95"),
        ({"share": float("nan")}, "share: nan is not within 0 to 0.95"),
        ({"slow_s": 4.5}, "slow_s: 4.5 is not within 5 to 60"),
        ({"slow_s": -0.5}, "slow_s: -0.5 is not within 5 to 60"),
        ({"depth": 9}, "depth: 9 is not within 1 to 8"),
        ({"names": ("a", "")}, "names: an empty name"),
        ({"port": 3}, "depth: as the port"),
    ],
)
def test_what_is_out_of_range_names_option_value_and_limits(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        Role(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "given", [{"port": 0}, {"port": 65535}, {"share": None}, {"share": 0.95}, {"slow_s": 0.0}, {"slow_s": 5.0}]
)
def test_limits_no_value_and_zero_where_it_means_something_are_in_range(given: dict[str, object]) -> None:
    Role(**given)  # type: ignore[arg-type]


def test_a_redefined_option_has_its_own_default_and_the_range_of_the_first() -> None:
    assert (Shared().share, Fleet().share) == (None, 0.5)
    with pytest.raises(ValueError, match=r"^share: 2 is not within 0 to 0.95$"):
        Fleet(share=2)


def test_options_that_both_inherit_are_copied() -> None:
    fleet = Fleet(port=7, names=("a",), slow_s=6.0)
    role = derive(Role, fleet, ("depth",), host="h")
    assert role == Role(port=7, names=("a",), slow_s=6.0, share=0.5, host="h")
    assert derive(Role, fleet, ("depth", "host"), port=9) == Role(port=9, names=("a",), slow_s=6.0, share=0.5)


def test_an_option_that_nobody_gives_is_an_error() -> None:
    with pytest.raises(TypeError, match=r"^Role.depth: Fleet neither has it nor gives it$"):
        derive(Role, Fleet(), (), host="h")


def test_another_option_of_the_same_name_is_not_copied() -> None:
    with pytest.raises(TypeError, match=r"^Role.host: Fleet neither has it nor gives it$"):
        derive(Role, Fleet(), ("depth",))


def test_a_value_for_no_option_is_an_error() -> None:
    with pytest.raises(TypeError, match="hots"):
        derive(Role, Fleet(), ("depth",), host="h", hots="x")
